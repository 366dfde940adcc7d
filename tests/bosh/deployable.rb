# frozen_string_literal: true

# What the ops files' spec asks: which files, variables and combinations there are, what a manifest becomes, and what
# its jobs are once a director had resolved every variable and link. Everything comes from the README, the files and
# the fixtures; nothing is listed here.
require 'open3'
require 'tmpdir'
require 'yaml'
require_relative 'go_patch'
require_relative 'spec_helper'

module Deployable
  ROOT = File.expand_path('../..', __dir__)
  RELEASE = File.join(ROOT, 'bosh-release')
  OPERATIONS = File.join(RELEASE, 'operations')
  FIXTURES = File.join(__dir__, 'fixtures')
  NAME = 'cf-route-sync'
  # What a file needs that is no file: an older shape of the manifest.
  SHAPES = { 'cfcr/legacy-token-auth.yml' => 'kubo-0.22.yml' }.freeze

  Row = Struct.new(:variables, :needs)
  # One documented command: the manifest's name there, and the ops files in their order.
  Combination = Struct.new(:title, :manifest, :uses)
  # One ops file of a command; moved to the job on VMs of its own, as the documents do it with sed.
  Use = Struct.new(:file, :moved)

  # --- what is written ------------------------------------------------------------------------------------------

  def ops_files
    Dir.glob('{cf,cfcr,prometheus}/*.yml', base: OPERATIONS).sort
  end

  def example_files
    Dir.children(File.join(OPERATIONS, 'example-vars-files')).sort - ['vars-standalone.yml']
  end

  def rows
    lines = File.readlines(File.join(OPERATIONS, 'README.md')).grep(/^\| \[`/)
    lines.to_h do |line|
      file, _, variables, needs = line.split('|')[1..4].map { |cell| cell.scan(/`([^`]+)`/).flatten }
      [file.first, Row.new(variables, needs)]
    end
  end

  # Every `bosh … deploy` in a fenced block of the release's documents.
  def combinations
    pages = Dir.glob('{operations,docs}/*.md', base: RELEASE).sort
    found = pages.flat_map do |page|
      blocks = File.read(File.join(RELEASE, page)).scan(/^ *```sh\n(.*?)^ *```/m).flatten
      commands = blocks.flat_map { |block| block.gsub(/\\\n\s*/, '').lines }
      commands.filter_map { |command| combination(page, command) }
    end
    found.uniq { |combination| [combination.manifest, combination.uses] }
  end

  def combination(page, command)
    manifest = command[/\bdeploy (\S+\.yml)/, 1]
    uses = command.scan(%r{-o (<\(moved )?\$OPS/([^\s)]+\.yml)}).map { |moved, file| Use.new(file, !moved.nil?) }
    # Abridged ones, and those that deploy a manifest as it was before.
    return if manifest.nil? || command.include?('…')
    return if uses.empty? && !manifest.include?('manifests/')

    files = uses.map { |use| use.moved ? "moved #{use.file}" : use.file }
    Combination.new("#{page}: #{File.basename(manifest)} #{files.join(' ')}".strip, File.basename(manifest), uses)
  end

  def example_variables(name)
    path = File.join(OPERATIONS, 'example-vars-files', "vars-#{File.basename(name)}")
    File.exist?(path) ? YAML.load_file(path) : {}
  end

  # --- manifests ------------------------------------------------------------------------------------------------

  def bases
    @bases ||= %w[cf cfcr prometheus].to_h { |name| [name, YAML.load_file(File.join(FIXTURES, "#{name}.yml"))] }
  end

  def base_of(name)
    base = bases.fetch(name.split('/').first)
    shape = SHAPES[name]
    shape ? GoPatch.apply(base, YAML.load_file(File.join(FIXTURES, shape))) : base
  end

  def operations(name)
    YAML.load_file(File.join(OPERATIONS, name))
  end

  def text_of(use)
    text = File.read(File.join(OPERATIONS, use.file))
    text.gsub!('/name=master/jobs/name=route-sync', '/name=route-sync/jobs/name=route-sync') if use.moved
    text
  end

  def manifest_before(name)
    rows.fetch(name).needs.reduce(base_of(name)) { |manifest, need| GoPatch.apply(manifest, operations(need)) }
  end

  def manifest_after(name)
    GoPatch.apply(manifest_before(name), operations(name))
  end

  def base_of_combination(combination)
    files = combination.uses.map(&:file)
    return YAML.load_file(File.join(RELEASE, 'manifests', combination.manifest)) if files.empty?

    base_of(files.find { |file| SHAPES.key?(file) } || files.first)
  end

  def manifest_of(combination)
    combination.uses.reduce(base_of_combination(combination)) do |manifest, use|
      GoPatch.apply(manifest, YAML.safe_load(text_of(use)))
    end
  end

  # The variables that neither the manifest nor its director makes.
  def asked_of_operator(name)
    made = manifest_after(name).fetch('variables', []).map { |variable| variable['name'] }
    (GoPatch.variables(operations(name)) - made).sort
  end

  # A list of aliases, of names in a certificate, may have the same entry twice without harm.
  def repeated(node)
    case node
    when Hash then node.transform_values { |value| repeated(value) }
    when Array then node.map { |value| repeated(value) }.uniq
    else node
    end
  end

  def job(name, group, job)
    GoPatch.find(manifest_after(name), "/instance_groups/name=#{group}/jobs/name=#{job}")
  end

  def variables_of(combination)
    files = combination.uses.map(&:file)
    names = files.empty? ? [combination.manifest] : files
    names.map { |name| example_variables(name) }.reduce({}, :merge)
  end

  def interpolated(combination)
    GoPatch.interpolate(manifest_of(combination), variables_of(combination))
  end

  # --- jobs -----------------------------------------------------------------------------------------------------

  OurJob = Struct.new(:name, :group, :consumes, :properties, :manifest)

  def our_jobs(manifest)
    manifest.fetch('instance_groups').flat_map do |group|
      group['jobs'].select { |job| job['release'] == NAME }.map do |job|
        OurJob.new(job['name'], group, job.fetch('consumes', {}), job.fetch('properties', {}), manifest)
      end
    end
  end

  def spec_of(job)
    YAML.load_file(File.join(ROOT, 'jobs', job.name, 'spec'))
  end

  # Properties and links that the job's spec does not know.
  def undeclared(job)
    spec = spec_of(job)
    links = job.consumes.keys - spec.fetch('consumes', []).map { |link| link['name'] }
    links + undeclared_properties(job.properties, spec.fetch('properties', {}).keys)
  end

  def undeclared_properties(node, declared, prefix = nil)
    node.flat_map do |key, value|
      path = [prefix, key].compact.join('.')
      next [] if declared.include?(path)
      next [path] unless value.is_a?(Hash) && declared.any? { |name| name.start_with?("#{path}.") }

      undeclared_properties(value, declared, path)
    end
  end

  # --- what a director adds -------------------------------------------------------------------------------------

  # The combination's manifest with every variable given, as its jobs get to see it.
  def resolved(combination)
    resolve(interpolated(combination))
  end

  def resolve(node)
    case node
    when Hash then node.transform_values { |value| resolve(value) }
    when Array then node.map { |value| resolve(value) }
    when String
      # An example shows where a PEM belongs, not one that can be read.
      return node.include?('PRIVATE KEY') ? Pem::CLIENT_KEY : Pem::CLIENT_CERT if node.include?('-----BEGIN')

      whole = node.match(/\A#{GoPatch::VARIABLE}\z/)
      return made(whole[1]) if whole

      node.gsub(GoPatch::VARIABLE) { made(Regexp.last_match(1)) }
    else node
    end
  end

  # What CredHub makes of a name: the part of a certificate that is asked for, all of it, or a password.
  def made(name)
    case name
    when /\.ca\z/ then Pem::CA
    when /\.certificate\z/ then Pem::CLIENT_CERT
    when /\.private_key\z/ then Pem::CLIENT_KEY
    when /\Atls-/ then { 'ca' => Pem::CA, 'certificate' => Pem::CLIENT_CERT, 'private_key' => Pem::CLIENT_KEY }
    else %(it's: "#{name}" # 100 %)
    end
  end

  # The first instance of the job, as its director would render it.
  def rendered(job)
    spec = InstanceSpec.new(name: job.group['name'], id: '5e6f7a8b-0000-4000-8000-000000000000', ip: '10.0.20.4',
                            deployment: job.manifest['name'])
    RenderedJob.new(job.name, job.properties, links: links_of(job), spec:)
  end

  # The links that the job would get: what its manifest names in the foundation, and what its own deployment offers.
  def links_of(job)
    spec_of(job).fetch('consumes', []).filter_map do |consumed|
      case consumed['name']
      when 'nats-tls'
        link_to(resolve(bases['cf']), 'nats', 'nats-tls', consumed) if job.consumes.key?('nats-tls')
      when 'kube-apiserver'
        masters = job.manifest['instance_groups'].any? { |group| group['name'] == 'master' }
        link_to(job.manifest, 'master', 'kube-apiserver', consumed) if masters
      when 'peers'
        link_to(job.manifest, job.group['name'], job.name, consumed) unless job.consumes['peers'] == 'nil'
      end
    end
  end

  # Links that the manifest leaves to the director although several of our jobs offer them: it refuses such a manifest,
  # also where the link is optional.
  def ambiguous(manifest)
    jobs = our_jobs(manifest)
    offered = jobs.flat_map { |job| spec_of(job).fetch('provides', []).map { |link| link['type'] } }.tally
    jobs.flat_map do |job|
      left = spec_of(job).fetch('consumes', []).reject { |link| job.consumes.key?(link['name']) }
      left.select { |link| offered.fetch(link['type'], 0) > 1 }.map { |link| [job.group['name'], link['name']] }
    end
  end

  def link_to(manifest, group, job, consumed)
    group = GoPatch.find(manifest, "/instance_groups/name=#{group}")
    properties = GoPatch.find(group, "/jobs/name=#{job}/properties?")
    instances = Array.new(group['instances']) { |index| LinkInstance.new(address: "10.0.16.#{index + 5}") }
    Link.new(name: consumed['name'], instances:, properties:, address: "q-s0.#{group['name']}.bosh")
  end

  # --- the real bosh --------------------------------------------------------------------------------------------

  # A program that somebody handed in: on PATH, else where the suites in Rust look for theirs.
  def handed_in(name)
    found = ENV.fetch('PATH', '').split(File::PATH_SEPARATOR).reject(&:empty?).map { |folder| File.join(folder, name) }
               .find { |path| File.file?(path) && File.executable?(path) }
    return found if found

    folder = ENV.fetch('ROUTE_SYNC_COUNTERPARTS') do
      cache = ENV.fetch('XDG_CACHE_HOME') { File.join(Dir.home, '.cache') }
      File.join(cache, 'route-sync/counterparts')
    end
    path = File.join(folder, name)
    path if File.file?(path)
  end

  # The real bosh; without it the example that asks is skipped, and its statement is told as not confirmed.
  def bosh_for(statement)
    bosh = handed_in('bosh')
    return bosh if bosh

    not_confirmed('bosh', statement)
    skip('no bosh is at hand')
  end

  # Told at the end of a run, as every statement that needs a program nobody handed in.
  def not_confirmed(program, statement)
    line = "not confirmed on the real #{program} (absent): #{statement}\n"
    warn line
    file = ENV['ROUTE_SYNC_UNCONFIRMED']
    File.write(file, line, mode: 'a') if file
  end

  def interpolated_by(bosh, combination)
    texts = combination.uses.map { |use| text_of(use) }
    output, errors, good = bosh_int(bosh, base_of_combination(combination), texts, variables_of(combination))
    raise "bosh int: #{errors}#{output}" unless good

    output
  end

  # Output, complaints, and whether it succeeded.
  def bosh_int(bosh, manifest, operations, variables = {})
    Dir.mktmpdir('bosh-int') do |folder|
      file = ->(name, text) { File.join(folder, name).tap { |path| File.write(path, text) } }
      command = [bosh, '--non-interactive', 'int', file['manifest.yml', YAML.dump(manifest)],
                 '--vars-file', file['vars.yml', YAML.dump(variables)]]
      operations.each_with_index { |text, at| command.push('--ops-file', file["#{at}.yml", text]) }
      # Its own folder as home: nobody's targets and credentials are read.
      output, errors, status = Open3.capture3({ 'HOME' => folder }, *command)
      [output, errors, status.success?]
    end
  end
end
