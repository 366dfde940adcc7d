# frozen_string_literal: true

# A whole job, rendered: every template of its spec, and the same written to disk as the agent would.

require 'fileutils'
require 'yaml'

# The gem's name until 2025, and its name since then.
%w[bosh/common/template/test bosh/template/test].any? do |gem|
  require gem
rescue LoadError
  false
end || require_relative('harness')
Bosh::Template = Bosh::Common::Template if defined?(Bosh::Common::Template)

RELEASE = File.expand_path('../..', __dir__)

# One job with its properties, links and instance.
class RenderedJob
  include Bosh::Template::Test

  attr_reader :name

  def initialize(name, properties, links: [], spec: InstanceSpec.new, release: RELEASE)
    @name = name
    @job = ReleaseDir.new(release).job(name)
    @templates = YAML.load_file(File.join(release, 'jobs', name, 'spec'))['templates']
    @properties = properties
    @links = links
    @spec = spec
  end

  def destinations = @templates.values

  def render(destination) = @job.template(destination).render(@properties, spec: @spec, consumes: @links)

  # Each file by its path below the job. What any template refuses is told together.
  def files
    wrong = []
    files = destinations.to_h do |destination|
      [destination, render(destination)]
    rescue StandardError => e
      wrong << "#{destination}: #{e.message}"
      [destination, nil]
    end
    raise wrong.join("\n") unless wrong.empty?

    files
  end

  # Writes every file below a folder; scripts are executable. `within` stands in for /var/vcap in all of them.
  def write(folder, within: nil)
    files.each do |destination, text|
      path = File.join(folder, destination)
      FileUtils.mkdir_p(File.dirname(path))
      text = text.gsub('/var/vcap/', "#{within}/") if within
      File.write(path, text)
      # The agent's own modes: nothing is for the world.
      File.chmod(destination.start_with?('bin/') ? 0o750 : 0o640, path)
    end
  end
end
