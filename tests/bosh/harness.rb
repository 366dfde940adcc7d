# frozen_string_literal: true

# Renders a job's templates as the director does: `p`, `if_p`, `link`, `if_link` and `spec` of its documented contract,
# under the names of the gem bosh-template (`Bosh::Template::Test`), so that the specs here run with either: what the
# gem is asked for here, it answers alike (compared with the director's source of 2026-08). The gem is in no
# distribution's packages and asks for a newer Ruby than Debian's.
#
# Stricter than the gem in one thing: a property or link that the job's spec does not declare is an error even where it
# has a default, or is only asked about; on a director it would silently be nil for good.

require 'erb'
require 'ostruct'
require 'yaml'

module Bosh
  module Template
    class UnknownProperty < StandardError
      def initialize(names)
        super("Can't find property '#{names.join("', or '")}'")
      end
    end

    class UnknownLink < StandardError
      def initialize(name)
        super("Can't find link '#{name}'")
      end
    end

    # The first property that is set; whoever includes this knows a single `property`.
    module FirstProperty
      def p(*args)
        names = Array(args[0])
        names.each do |name|
          value = property(name)
          return value unless value.nil?
        end
        return args[1] if args.length == 2

        raise UnknownProperty, names
      end
    end

    # What a template sees.
    class EvaluationContext
      include FirstProperty

      attr_reader :spec

      def initialize(spec, declared:, consumed:)
        @raw_properties = spec['properties']
        @spec = open(spec)
        @links = spec['links']
        @declared = declared
        @consumed = consumed
      end

      def properties = open(@raw_properties)

      def if_p(*names)
        values = names.map { |name| property(name) }
        return Otherwise.new(self) if values.any?(&:nil?)

        yield(*values)
        Done.new
      end

      def link(name)
        raise UnknownLink, "#{name}: the job's spec does not declare it" unless @consumed.include?(name)
        raise UnknownLink, name unless @links[name]

        EvaluationLink.new(@links[name])
      end

      def if_link(name)
        raise UnknownLink, "#{name}: the job's spec does not declare it" unless @consumed.include?(name)
        return Otherwise.new(self) unless @links[name]

        yield EvaluationLink.new(@links[name])
        Done.new
      end

      def get_binding = binding

      private

      def property(name)
        # A declared property may hold a whole group of keys.
        covered = @declared.any? { |declared| name == declared || name.start_with?("#{declared}.") }
        raise UnknownProperty, ["#{name}: the job's spec does not declare it"] unless covered

        name.split('.').reduce(@raw_properties) { |group, key| group.is_a?(Hash) ? group[key] : nil }
      end

      def open(value)
        case value
        when Hash then OpenStruct.new(value.transform_values { |inner| open(inner) })
        when Array then value.map { |inner| open(inner) }
        else value
        end
      end

      # What follows an `if_p` or `if_link` that had nothing.
      class Otherwise
        def initialize(context)
          @context = context
        end

        def else = yield

        def else_if_p(*names, &block) = @context.if_p(*names, &block)

        def else_if_link(name, &block) = @context.if_link(name, &block)
      end

      # What follows one that had something.
      class Done
        def else; end

        def else_if_p(*) = self

        def else_if_link(*) = self
      end
    end

    # A link as a template sees it.
    class EvaluationLink
      include FirstProperty

      Instance = Struct.new(:name, :id, :index, :az, :address, :bootstrap)

      def initialize(link)
        @link = link
      end

      def instances = @link['instances'].map { |it| Instance.new(*it.values_at(*Instance.members.map(&:to_s))) }

      def address
        @link['address'] || raise(NotImplementedError, 'the link has no `address`')
      end

      def if_p(*names)
        values = names.map { |name| property(name) }
        yield(*values) if values.none?(&:nil?)
      end

      private

      def property(name)
        name.split('.').reduce(@link['properties']) { |group, key| group.is_a?(Hash) ? group[key] : nil }
      end
    end

    module Test
      # The release's folder.
      class ReleaseDir
        def initialize(path)
          @path = path
        end

        def job(name) = Job.new(File.join(@path, 'jobs', name))
      end

      # One job's folder.
      class Job
        def initialize(folder)
          @folder = folder
          @spec = YAML.load_file(File.join(folder, 'spec'))
        end

        def template(destination)
          source, = @spec['templates'].find { |_, it| it == destination }
          raise "the spec of `#{@spec['name']}` lists no template for `#{destination}`" unless source

          Template.new(@spec, File.join(@folder, 'templates', source))
        end
      end

      # One template.
      class Template
        def initialize(job_spec, path)
          @job_spec = job_spec
          @path = path
        end

        def render(properties, spec: InstanceSpec.new, consumes: [])
          context = EvaluationContext.new(
            spec.to_h.merge('properties' => with_defaults(properties), 'links' => links(consumes)),
            declared: (@job_spec['properties'] || {}).keys,
            consumed: (@job_spec['consumes'] || []).map { |link| link['name'] },
          )
          erb = ERB.new(File.read(@path), trim_mode: '-')
          erb.filename = @path
          erb.result(context.get_binding)
        end

        private

        # As the director binds them: only what is declared, and what has neither value nor default is there, as nil.
        def with_defaults(given)
          (@job_spec['properties'] || {}).each_with_object({}) do |(name, property), bound|
            *groups, leaf = name.split('.')
            value = name.split('.').reduce(given) { |group, key| group.is_a?(Hash) ? group[key] : nil }
            value = property['default'] if value.nil?
            groups.reduce(bound) { |group, key| group[key] ||= {} }[leaf] = value
          end
        end

        def links(consumes)
          declared = (@job_spec['consumes'] || []).map { |link| link['name'] }
          consumes.to_h do |link|
            unless declared.include?(link.name)
              raise "Link '#{link.name}' is not declared as a consumed link in this job."
            end

            [link.name, link.to_h]
          end
        end
      end

      # What `spec` is in a template.
      class InstanceSpec
        DEFAULTS = {
          address: 'my.bosh.com', az: 'az1', bootstrap: false, deployment: 'my-deployment',
          id: 'xxxxxx-xxxxxxxx-xxxxx', index: 0, ip: '192.168.0.0', name: 'me',
          networks: { 'network1' => { 'foo' => 'bar', 'ip' => '192.168.0.0' } },
        }.freeze

        def initialize(**given)
          unknown = given.keys - DEFAULTS.keys
          raise ArgumentError, "no such key of `spec`: #{unknown.join(', ')}" unless unknown.empty?

          @values = DEFAULTS.merge(given)
        end

        def to_h = @values.transform_keys(&:to_s)
      end

      # A link to render with.
      class Link
        attr_reader :name

        def initialize(name:, instances: [], properties: {}, address: nil)
          @name = name
          @instances = instances
          @properties = properties
          @address = address
        end

        def to_h
          { 'instances' => @instances.map(&:to_h), 'properties' => @properties, 'address' => @address }.compact
        end
      end

      # One of its instances.
      class LinkInstance
        DEFAULTS = {
          name: 'i-name', id: 'jkl8098', index: 4, az: 'az4', address: 'link.instance.address.com', bootstrap: false,
        }.freeze

        def initialize(**given)
          unknown = given.keys - DEFAULTS.keys
          raise ArgumentError, "no such key of an instance: #{unknown.join(', ')}" unless unknown.empty?

          @values = DEFAULTS.merge(given)
        end

        def to_h = @values.transform_keys(&:to_s)
      end
    end
  end
end
