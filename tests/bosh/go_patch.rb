# frozen_string_literal: true

# What `bosh int` does to a manifest, as far as the ops files of this release use it: operations on paths
# (go-patch, as in bosh CLI 7), then ((variables)). It owns the meaning of a path; it refuses to know what a
# manifest means, modifiers such as `:before`, and variables that the CLI would generate.
#
# Where the real CLI is at hand, operations_spec.rb holds both against each other on every combination.
require 'yaml'

module GoPatch
  class Mismatch < StandardError; end

  # A step of a path: what it looks for, and whether it may make what is not there.
  Key = Struct.new(:name, :optional)
  Index = Struct.new(:at)
  Match = Struct.new(:key, :value, :optional)
  AfterLast = Class.new

  OPERATIONS = { 'replace' => %w[type path value], 'remove' => %w[type path],
                 'test' => %w[type path value absent] }.freeze
  VARIABLE = %r{\(\( ?!?([-/.\w\p{L}]+) ?\)\)}

  module_function

  # The manifest after the operations; the one handed in stays as it is.
  def apply(manifest, operations)
    operations.reduce(copy(manifest)) do |document, operation|
      check(operation)
      send(operation['type'], document, operation)
    rescue Mismatch => e
      raise Mismatch, "#{operation['type']} #{operation['path']}: #{e.message}"
    end
  end

  # The document with the variables that are known; the others stay for the director.
  def interpolate(node, variables)
    case node
    when Hash then node.to_h { |key, value| [interpolate(key, variables), interpolate(value, variables)] }
    when Array then node.map { |item| interpolate(item, variables) }
    when String then interpolate_text(node, variables)
    else node
    end
  end

  # Every name between double brackets, with its first part alone: `tls.ca` is the variable `tls`.
  def variables(node)
    case node
    when Hash then node.flat_map { |key, value| variables(key) + variables(value) }
    when Array then node.flat_map { |item| variables(item) }
    when String then node.scan(VARIABLE).map { |(name)| name.split('.').first }
    else []
    end.uniq
  end

  # What stands at a path. Steps that may be missing are taken as empty, as go-patch does.
  def find(document, path)
    steps(path).reduce(document) { |node, step| find_step(node, step) }
  end

  def steps(path)
    raise Mismatch, 'a path begins with `/`' unless path.start_with?('/')

    optional = false
    parts = path[1..].split('/', -1)
    parts.each_with_index.map do |part, at|
      raise Mismatch, "modifier in `#{part}` is not known here" if part.include?(':')
      next AfterLast.new if part == '-' && at == parts.size - 1
      next Index.new(part.to_i) if part.match?(/\A-?\d+\z/)

      # Once one step may be missing, so may all that follow it.
      optional ||= part.end_with?('?')
      name = part.delete_suffix('?').gsub(/~[017]/, '~0' => '~', '~1' => '/', '~7' => ':')
      key, value = name.split('=', 2)
      value ? Match.new(key, value, optional) : Key.new(key, optional)
    end
  end

  # --- operations ---------------------------------------------------------------------------------------------

  def check(operation)
    allowed = OPERATIONS.fetch(operation['type']) { raise Mismatch, "unknown operation `#{operation['type']}`" }
    unknown = operation.keys - allowed
    raise Mismatch, "unknown key `#{unknown.first}`" unless unknown.empty?
    raise Mismatch, 'no `value`' if operation['type'] == 'replace' && !operation.key?('value')
  end

  def replace(document, operation)
    steps = steps(operation['path'])
    node = document
    steps[0..-2].each_with_index { |step, at| node = enter(node, step, steps[at + 1]) }
    put(node, steps.last, copy(operation['value']))
    document
  end

  def remove(document, operation)
    steps = steps(operation['path'])
    node = document
    steps[0..-2].each do |step|
      return document if optional?(step) && place(node, step).nil?

      node = find_step(node, step)
    end
    take(node, steps.last)
    document
  end

  def test(document, operation)
    found = begin
      find(document, operation['path'])
    rescue Mismatch
      raise unless operation['absent']
      # A path whose last step alone is missing is absent; one that goes astray earlier does not fit.
      parent = operation['path'].rpartition('/').first
      find(document, parent) unless parent.empty?
      return document
    end
    raise Mismatch, 'expected to be absent' if operation['absent']
    raise Mismatch, 'does not have the expected value' unless found == operation['value']

    document
  end

  # --- steps --------------------------------------------------------------------------------------------------

  def optional?(step)
    step.respond_to?(:optional) && step.optional
  end

  def expect(kind, node)
    return if node.is_a?(kind)

    raise Mismatch, "expected #{kind == Hash ? 'a map' : 'an array'}, found #{node.class.name.downcase}"
  end

  # Where a step leads: a key, an index, or nil where nothing is there.
  def place(node, step)
    case step
    when Key
      expect(Hash, node)
      node.key?(step.name) ? step.name : nil
    when Index
      expect(Array, node)
      step.at.between?(-node.size, node.size - 1) ? step.at % node.size : nil
    when Match
      expect(Array, node)
      found = node.each_index.select { |at| node[at].is_a?(Hash) && node[at][step.key] == step.value }
      raise Mismatch, "`#{step.key}=#{step.value}` stands #{found.size} times" if found.size > 1

      found.first
    else raise Mismatch, '`-` has no place here'
    end
  end

  def find_step(node, step)
    at = place(node, step)
    return node[at] unless at.nil?
    raise Mismatch, "no `#{named(step)}`" unless optional?(step)

    step.is_a?(Match) ? { step.key => step.value } : {}
  end

  # Goes one step down, and makes what may be missing in the kind that the next step needs.
  def enter(node, step, following)
    at = place(node, step)
    return node[at] unless at.nil?
    raise Mismatch, "no `#{named(step)}`" unless optional?(step)

    if step.is_a?(Match)
      node << { step.key => step.value }
      node.last
    else
      node[step.name] = following.is_a?(Key) ? {} : []
    end
  end

  def put(node, step, value)
    if step.is_a?(AfterLast)
      expect(Array, node)
      return node << value
    end

    at = place(node, step)
    return node[at] = value unless at.nil?
    raise Mismatch, "no `#{named(step)}`" unless optional?(step)

    step.is_a?(Match) ? node << value : node[step.name] = value
  end

  def take(node, step)
    at = place(node, step)
    if at.nil?
      raise Mismatch, "no `#{named(step)}`" unless optional?(step)
    elsif node.is_a?(Hash)
      node.delete(at)
    else
      node.delete_at(at)
    end
  end

  def named(step)
    case step
    when Key then step.name
    when Index then step.at.to_s
    else "#{step.key}=#{step.value}"
    end
  end

  # --- variables ----------------------------------------------------------------------------------------------

  def interpolate_text(text, variables)
    whole = text.match(/\A#{VARIABLE}\z/)
    if whole
      value = lookup(whole[1], variables)
      return value.nil? ? text : value
    end

    text.gsub(VARIABLE) do |match|
      value = lookup(Regexp.last_match(1), variables)
      next match if value.nil?
      raise Mismatch, "`#{match}` is no text" unless value.is_a?(String) || value.is_a?(Integer)

      value.to_s
    end
  end

  def lookup(name, variables)
    first, *rest = name.split('.')
    rest.reduce(variables[first]) do |value, key|
      return nil if value.nil?
      raise Mismatch, "variable `#{first}` is no map" unless value.is_a?(Hash)

      value[key]
    end
  end

  def copy(value)
    Marshal.load(Marshal.dump(value))
  end
end
