# frozen_string_literal: true

# What the specs share: certificates that fit, properties that are enough, and a render that is always loaded by the
# real program.

require 'json'
require 'open3'
require 'openssl'
require 'tmpdir'

require_relative 'rendered_job'
require_relative 'schema'

include Bosh::Template::Test

PROGRAM = ENV.fetch('ROUTE_SYNC_BINARY') do
  File.join(ENV.fetch('CARGO_TARGET_DIR', File.join(RELEASE, 'target')), 'debug/route-sync')
end
raise "there is no route-sync at #{PROGRAM}; build it: cargo build --locked" unless File.executable?(PROGRAM)

JOBS = %w[route-sync kubernetes-api-route-registrar route-sync-smoke-tests register-uaa-client].freeze

# An authority, and a client certificate of it.
module Pem
  module_function

  def issue(name, issuer: nil, issuer_key: nil)
    key = OpenSSL::PKey::EC.generate('prime256v1')
    certificate = OpenSSL::X509::Certificate.new
    certificate.version = 2
    certificate.serial = rand(1 << 60)
    certificate.subject = OpenSSL::X509::Name.parse("/CN=#{name}")
    certificate.issuer = issuer ? issuer.subject : certificate.subject
    certificate.public_key = key
    certificate.not_before = Time.now - 3600
    certificate.not_after = Time.now + (24 * 3600)
    extensions = OpenSSL::X509::ExtensionFactory.new(issuer || certificate, certificate)
    certificate.add_extension(extensions.create_extension('basicConstraints', "CA:#{issuer.nil?}", true))
    certificate.sign(issuer_key || key, 'SHA256')
    [certificate, key]
  end

  authority, authority_key = issue('ca')
  client, client_key = issue('route-sync', issuer: authority, issuer_key: authority_key)
  CA = authority.to_pem
  CLIENT_CERT = client.to_pem
  CLIENT_KEY = client_key.to_pem
  OTHER_CA = issue('another ca').first.to_pem
end

def merged(base, other)
  base.merge(other) { |_, old, new| old.is_a?(Hash) && new.is_a?(Hash) ? merged(old, new) : new }
end

# `nested('a.b', 1)` is `{'a' => {'b' => 1}}`.
def nested(name, value)
  name.split('.').reverse.reduce(value) { |inner, key| { key => inner } }
end

def without(properties, *names)
  names.reduce(properties) do |all, name|
    *groups, leaf = name.split('.')
    all = Marshal.load(Marshal.dump(all))
    groups.reduce(all) { |group, key| group[key] }.delete(leaf)
    all
  end
end

def job_spec(job) = YAML.load_file(File.join(RELEASE, 'jobs', job, 'spec'))

# A job on disk, under a folder that stands in for /var/vcap.
class OnDisk
  attr_reader :root

  def initialize(job, root)
    @job = job
    @root = root
    job.write(folder, within: root)
    FileUtils.mkdir_p(["#{root}/data/#{job.name}", "#{root}/sys/log/#{job.name}"])
  end

  def folder = "#{@root}/jobs/#{@job.name}"

  def text(destination) = File.read(File.join(folder, destination))

  def yaml(destination) = YAML.safe_load(text(destination))

  # The main configuration.
  def config = yaml('config/route-sync.yml')

  # What the program says about it: whether it is good, and its words.
  def check
    output, status = Open3.capture2e(PROGRAM, 'check', '--offline', '--config', "#{folder}/config/route-sync.yml")
    [status.success?, output]
  end
end

# Renders a job and has its configuration loaded by the program; what the block says is asked of the files.
def deployed(job)
  Dir.mktmpdir('bosh-') do |root|
    on_disk = OnDisk.new(job, root)
    if File.exist?("#{on_disk.folder}/config/route-sync.yml")
      good, output = on_disk.check
      expect(good).to be(true), "the program refuses what was rendered:\n#{output}"
    end
    yield on_disk if block_given?
  end
end

# The message with which a job refuses to be rendered.
def refusal(job)
  job.files
  raise RSpec::Expectations::ExpectationNotMetError, 'it was rendered all the same'
rescue StandardError => e
  raise if e.is_a?(RSpec::Expectations::ExpectationNotMetError)

  e.message
end

def schema_of(job) = JSON.parse(File.read(File.join(RELEASE, 'jobs', job, 'properties_schema.json')))

# Whether each property of a job reaches its place. A change is a property and a value, or several of them in a Hash,
# then a file, a path in it (none: the text of the file), and what stands there then. To be used where `enough` are
# properties to start from and `job(base:)` is the job with them.
def each_property(name, changes)
  describe 'each property' do
    exercised = []
    changes.each do |first, *rest|
      given = first.is_a?(Hash) ? first : { first => rest.shift }
      exercised += given.keys
      file, path, expected = rest
      it "reaches its place: #{given.keys.join(', ')} in #{file} #{path}" do
        properties = given.reduce(enough) do |all, (property, value)|
          # An empty group stands for one that is not given.
          value == {} ? without(all, property) : merged(all, nested(property, value))
        end
        deployed(job(base: properties)) do |it|
          text = it.text(file).gsub(it.root, '/var/vcap')
          case expected
          when Regexp then expect(text).to match(expected)
          else
            found = path ? dug(YAML.safe_load(text), path) : text.strip
            expect(found).to eq(path ? expected : expected.strip)
          end
        end
        expect(Schema.errors(schema_of(name), properties)).to be_empty
      end
    end

    it 'is among these' do
      expect(job_spec(name)['properties'].keys - exercised).to be_empty
    end
  end
end

# `a.0.b` of nested groups and lists.
def dug(data, path)
  path.split('.').reduce(data) { |at, key| at.is_a?(Array) ? at[key.to_i] : at&.[](key) }
end

# The least with which each job is rendered.
ENOUGH = {
  'route-sync' => {
    'cloud_foundry' => { 'uaa_url' => 'https://uaa', 'routing_api_url' => 'https://api', 'app_domain' => 'apps.test',
                         'routing_api_client_id' => 'id', 'routing_api_client_secret' => 'secret' },
    'nats' => { 'machines' => ['10.0.0.1'], 'user' => 'u', 'password' => 'p', 'allow_plaintext' => true },
    'api-token' => 'token', 'tls' => { 'kubernetes' => { 'ca' => Pem::CA } },
  },
  'kubernetes-api-route-registrar' => {
    'cloud_foundry' => { 'uaa_url' => 'https://uaa', 'api_url' => 'https://api', 'uaa_client_id' => 'id',
                         'uaa_client_secret' => 'secret' },
    'external_kubo_port' => 8443, 'tls' => { 'kubernetes' => { 'ca' => Pem::CA } },
  },
  'route-sync-smoke-tests' => {},
  'register-uaa-client' => {
    'cloud_foundry' => { 'uaa_url' => 'https://uaa', 'routing_api_client_id' => 'id',
                         'routing_api_client_secret' => 'secret' },
    'uaa_admin' => { 'client_secret' => 'secret' },
  },
}.freeze

# Every awkward text that a password may be.
AWKWARD = {
  'a colon and a blank' => 'a: b',
  'a hash' => 'a #b',
  'a leading star' => '*star',
  'a leading exclamation mark' => '!secret',
  'a leading at' => '@home',
  'a leading percent' => '%TAG',
  'a leading backtick' => '`tick',
  'single quotes' => %q(it's 'quoted'),
  'double quotes' => 'say "no"',
  'backslashes' => 'a\\nb\\',
  'a newline' => "first\nsecond",
  'a newline at its end' => "last\n",
  'a carriage return at its end' => "last\r",
  'leading and trailing blanks' => '  padded  ',
  'a tab' => "a\tb",
  'only digits, the first a zero' => '0123',
  'a boolean' => 'yes',
  'a null' => '~',
  'a number with an exponent' => '1e3',
  'a date' => '2026-01-01',
  'braces' => '{{}}',
  'brackets' => '[a, b]',
  'an alias' => '&anchor *alias',
  'a document end' => "a\n...\n---\nb",
  'a comment only' => '# nothing',
  'a URL\'s own characters' => 'a/b?c=d&e%20f@g:h+i',
  'ERB' => '<%= 1 %>',
  'a CredHub reference' => '((other))',
  'a shell\'s own characters' => '$(id) `id` $HOME; rm',
  'unicode' => 'pässwörd 密码 🔑',
  'separators of lines' => "a\u2028b\u0085c",
  'very long' => "#{'long word ' * 60}end",
}.freeze

# All that a listener for scrapers of other machines needs.
METRICS = {
  'metrics.port' => 9103, 'metrics.tls.ca_cert' => Pem::OTHER_CA, 'metrics.tls.cert' => Pem::CLIENT_CERT,
  'metrics.tls.key' => Pem::CLIENT_KEY, 'metrics.server_name' => 'scraped',
}.freeze

# What they change in a job's files, as `each_property` takes it.
def metrics_changes(folder)
  config = {
    'listen' => '0.0.0.0:9103', 'cert_file' => "#{folder}/certs/metrics.crt",
    'key_file' => "#{folder}/certs/metrics.key", 'client_ca_file' => "#{folder}/certs/metrics_ca.crt"
  }
  [
    [METRICS, 'config/route-sync.yml', 'metrics', config],
    [METRICS.merge('metrics.port' => '9103'), 'config/route-sync.yml', 'metrics.listen', '0.0.0.0:9103'],
    [METRICS, 'config/certs/metrics_ca.crt', nil, Pem::OTHER_CA],
    [METRICS, 'config/certs/metrics.crt', nil, Pem::CLIENT_CERT],
    [METRICS, 'config/certs/metrics.key', nil, Pem::CLIENT_KEY],
    [METRICS, 'config/prom_scraper_config.yml', 'port', 9103],
    [METRICS, 'config/prom_scraper_config.yml', 'scheme', 'https'],
    [METRICS, 'config/prom_scraper_config.yml', 'server_name', 'scraped'],
    [METRICS.merge('metrics.server_name' => " a.b-c\n"), 'config/prom_scraper_config.yml', 'server_name', 'a.b-c'],
  ]
end

# For every job that serves metrics; `job` makes one with more properties.
RSpec.shared_examples 'metrics over TLS are whole or refused' do
  of = ->(names) { names.map { |name| nested(name, METRICS.fetch(name)) }.reduce { |all, one| merged(all, one) } }

  METRICS.each_key do |name|
    it "names what is missing where all but one is given: #{name}" do
      others = METRICS.keys - [name]
      [of[others], merged(of[others], nested(name, ' '))].each do |given|
        expect(refusal(job(given))).to end_with(": `#{name}` is missing beside `#{others.first}`")
      end
    end

    it "names what is missing where nothing else is given: #{name}" do
      missing = (METRICS.keys - [name]).map { |other| "`#{other}` is missing beside `#{name}`" }
      expect(refusal(job(of[[name]]))).to end_with(": #{missing.join('; ')}")
    end
  end

  ['9103', '09103'].each do |port|
    it "names a port that both listeners have: #{port}" do
      given = merged(of[METRICS.keys], 'listen' => { 'port' => port })
      expect(refusal(job(given))).to end_with(': `metrics.port` and `listen.port` are the same')
    end
  end

  ['a name', "scraped\nscheme", 'https://scraped', 'scraped:9103', '-', 'a..b'].each do |name|
    it "refuses a name that no certificate has: #{name.inspect}" do
      given = merged(of[METRICS.keys], nested('metrics.server_name', name))
      expect(refusal(job(given))).to end_with(': `metrics.server_name` is no host name')
    end
  end
end

# For every job that hands proxies to its environment; `job` makes one with more properties.
RSpec.shared_examples 'proxies are shown without credentials, or refused' do
  {
    'HTTP://user:pw@10.0.0.9:3128' => 'HTTP://10.0.0.9:3128', ' http://user:pw@10.0.0.9:3128' => 'http://10.0.0.9:3128',
    'user:pw@10.0.0.9:3128' => '10.0.0.9:3128', 'http://10.0.0.9:3128/ ' => 'http://10.0.0.9:3128/'
  }.each do |given, shown|
    it "shows no credentials of a proxy in an environment: #{given.inspect}" do
      deployed(job('https_proxy' => given)) do |it|
        expect(it.yaml('config/bpm.yml')['processes'].first['env']).to eq('https_proxy' => shown, 'HTTPS_PROXY' => shown)
      end
    end
  end

  ['http://', 'http://user:p/w@10.0.0.9:3128', 'http://user:1/w@10.0.0.9:3128', 'http://user:p w@10.0.0.9'].each do |given|
    it "refuses a proxy that is no URL, without showing it: #{given}" do
      told = refusal(job('http_proxy' => given))
      expect(told).to include('`http_proxy` must be a URL')
      expect(told).not_to include('w@')
    end
  end
end
