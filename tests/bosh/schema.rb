# frozen_string_literal: true

# The part of JSON Schema 2020-12 that the jobs' schemas use, with the director's own type `certificate`. A keyword that
# is not known here is an error, so that no schema says more than is tested.

require 'openssl'

module Schema
  DRAFT = 'https://json-schema.org/draft/2020-12/schema'
  KEYWORDS = %w[
    $schema type enum minLength pattern minimum maximum items minItems properties required additionalProperties
  ].freeze
  TYPES = {
    'object' => ->(it) { it.is_a?(Hash) },
    'array' => ->(it) { it.is_a?(Array) },
    'string' => ->(it) { it.is_a?(String) },
    'integer' => ->(it) { it.is_a?(Integer) },
    'boolean' => ->(it) { [true, false].include?(it) },
    'null' => ->(it) { it.nil? },
    # As the director does (job_schema_validator.rb, 2025): empty, or a chain that OpenSSL reads.
    'certificate' => ->(it) { it.is_a?(String) && (it.empty? || Schema.chain?(it)) },
  }.freeze

  module_function

  def chain?(text)
    OpenSSL::X509::Certificate.load(text).any?
  rescue OpenSSL::X509::CertificateError
    false
  end

  # Everything wrong with a value, each with its path.
  def errors(schema, value, path = '')
    unknown = schema.keys - KEYWORDS
    raise "#{path}: keywords that the tests do not know: #{unknown.join(', ')}" unless unknown.empty?

    types = Array(schema['type'])
    fits = types.empty? || types.any? { |type| TYPES.fetch(type).(value) }
    return ["#{path} is none of #{types.join(', ')}"] unless fits

    wrong = []
    wrong << "#{path} is none of #{schema['enum'].join(', ')}" if schema['enum'] && !schema['enum'].include?(value)
    wrong + case value
            when String then text(schema, value, path)
            when Integer then number(schema, value, path)
            when Array then list(schema, value, path)
            when Hash then group(schema, value, path)
            else []
            end
  end

  def text(schema, value, path)
    wrong = []
    wrong << "#{path} is too short" if schema['minLength'] && value.length < schema['minLength']
    wrong << "#{path} does not look right" if schema['pattern'] && value !~ /#{schema['pattern']}/
    wrong
  end

  def number(schema, value, path)
    wrong = []
    wrong << "#{path} is too small" if schema['minimum'] && value < schema['minimum']
    wrong << "#{path} is too large" if schema['maximum'] && value > schema['maximum']
    wrong
  end

  def list(schema, value, path)
    wrong = value.size < schema.fetch('minItems', 0) ? ["#{path} has too few items"] : []
    return wrong unless schema['items']

    wrong + value.each_with_index.flat_map { |item, index| errors(schema['items'], item, "#{path}/#{index}") }
  end

  def group(schema, value, path)
    known = schema['properties'] || {}
    wrong = (schema['required'] || []).reject { |key| value.key?(key) }.map { |key| "#{path}/#{key} is missing" }
    wrong += (value.keys - known.keys).map { |key| "#{path}/#{key} is unknown" } if schema['additionalProperties'] == false
    wrong + value.flat_map { |key, inner| known[key] ? errors(known[key], inner, "#{path}/#{key}") : [] }
  end
end
