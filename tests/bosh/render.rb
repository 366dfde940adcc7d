#!/usr/bin/env ruby
# frozen_string_literal: true

# Renders a job: render.rb JOB PROPERTIES.json FOLDER
#
# PROPERTIES.json: {"properties": {…}, "links": {"nats-tls": {"address": …, "instances": [{"address": …}, …],
# "properties": {…}}}, "spec": {"ip": …, "name": …, "id": …, "deployment": …}}; only what is needed has to be there.
# FOLDER receives each template under its destination; scripts are executable.

require 'json'

require_relative 'rendered_job'

include Bosh::Template::Test

abort "usage: #{$PROGRAM_NAME} JOB PROPERTIES.json FOLDER" unless ARGV.size == 3
name, input, folder = ARGV
given = JSON.parse(File.read(input))
unknown = given.keys - %w[properties links spec]
abort "#{input}: unknown: #{unknown.join(', ')}" unless unknown.empty?

links = (given['links'] || {}).map do |link, it|
  instances = (it['instances'] || []).map { |instance| LinkInstance.new(**instance.transform_keys(&:to_sym)) }
  Link.new(name: link, instances:, properties: it['properties'] || {}, address: it['address'])
end
spec = InstanceSpec.new(**(given['spec'] || {}).transform_keys(&:to_sym))
begin
  RenderedJob.new(name, given['properties'] || {}, links:, spec:).write(folder)
rescue StandardError => e
  abort e.message
end
