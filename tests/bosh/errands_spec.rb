# frozen_string_literal: true

# The two errands: what BPM is told to run, and that the program understands it.

require 'socket'
require 'uri'

require_relative 'spec_helper'

# Runs what a rendered bpm.yml says, without BPM.
def run_process(on_disk)
  process, *others = on_disk.yaml('config/bpm.yml')['processes']
  raise "more than one process: #{others}" unless others.empty?

  output, status = Open3.capture2e(process['env'] || {}, PROGRAM, *process['args'])
  [status.exitstatus, output]
end

# As much of a UAA as making a client takes. It remembers what it was told.
class Uaa
  attr_reader :clients, :logins, :admin

  def initialize(admin)
    @admin = admin
    @clients = {}
    @logins = []
    @server = TCPServer.new('127.0.0.1', 0)
    @thread = Thread.new { loop { serve(@server.accept) } }
  end

  def url = "http://127.0.0.1:#{@server.addr[1]}"

  def close
    @thread.kill
    @server.close
  end

  private

  def serve(socket)
    verb, path, = socket.gets.to_s.split
    length = 0
    while (line = socket.gets.to_s.chomp) != ''
      length = Regexp.last_match(1).to_i if line =~ /\Acontent-length: (\d+)\z/i
    end
    status, body = answer(verb, path, socket.read(length))
    body = JSON.generate(body)
    socket.write("HTTP/1.1 #{status} X\r\ncontent-type: application/json\r\ncontent-length: #{body.bytesize}\r\n" \
                 "connection: close\r\n\r\n#{body}")
  ensure
    socket.close
  end

  def answer(verb, path, body)
    case [verb, path[%r{\A/\w+/\w+}]]
    when %w[POST /oauth/token] then token(body)
    when %w[GET /oauth/clients]
      client = @clients[URI.decode_www_form_component(path.delete_prefix('/oauth/clients/'))]
      client ? [200, client.except('client_secret')] : [404, { 'error' => 'not_found' }]
    when %w[POST /oauth/clients]
      client = JSON.parse(body)
      @clients[client['client_id']] = client
      [201, client.except('client_secret')]
    when %w[PUT /oauth/clients] then change(path.delete_prefix('/oauth/clients/'), JSON.parse(body))
    else [400, { 'error' => "#{verb} #{path}" }]
    end
  end

  def change(id, change)
    id, secret = id.split('/')
    client = @clients.fetch(URI.decode_www_form_component(id))
    secret ? client['client_secret'] = change['secret'] : client.update(change)
    [200, client.except('client_secret')]
  end

  # The program logs in by form, which every UAA reads alike.
  def token(body)
    login = URI.decode_www_form(body).to_h.values_at('client_id', 'client_secret')
    @logins << login
    id, secret = login
    scopes = if login == @admin then 'clients.admin clients.read clients.write clients.secret'
             elsif @clients.dig(id, 'client_secret') == secret then @clients[id]['authorities'].join(' ')
             else return [401, { 'error' => 'unauthorized' }]
             end
    [200, { 'access_token' => 'token', 'token_type' => 'bearer', 'expires_in' => 600, 'scope' => scopes }]
  end
end

describe 'the errand register-uaa-client' do
  let(:enough) do
    {
      'cloud_foundry' => { 'uaa_url' => 'https://uaa.example.com', 'routing_api_client_id' => 'cf_route_sync',
                           'routing_api_client_secret' => 'hidden-client' },
      'uaa_admin' => { 'client_secret' => 'hidden-admin' },
    }
  end

  def job(properties = nil, base: enough, **changed)
    RenderedJob.new('register-uaa-client', merged(base, properties || changed))
  end

  # Its configuration is no whole one, so that only the errand itself can load it.
  def rendered(job)
    Dir.mktmpdir('bosh-') { |root| yield OnDisk.new(job, root) }
  end

  AWKWARD.each do |what, text|
    next if text.end_with?("\n", "\r")

    it "logs in and makes a client with secrets that arrive intact: #{what}" do
      uaa = Uaa.new(['admin', text])
      properties = { 'cloud_foundry' => { 'uaa_url' => uaa.url, 'routing_api_client_secret' => text },
                     'uaa_admin' => { 'client_secret' => text } }
      rendered(job(properties)) do |it|
        code, output = run_process(it)
        expect([code, output]).to match([0, anything])
        expect(uaa.logins).to include(['admin', text])
        client = uaa.clients.fetch('cf_route_sync')
        expect(client['client_secret']).to eq(text)
        expect(client['authorities'])
          .to contain_exactly('routing.router_groups.read', 'routing.routes.read', 'routing.routes.write')
        expect(client['authorized_grant_types']).to eq(['client_credentials'])
        expect(output).not_to include(text) if text.size > 8
      end
    ensure
      uaa&.close
    end
  end

  it 'logs in as another client than admin where it is told so' do
    uaa = Uaa.new(%w[root hidden-admin])
    properties = { 'cloud_foundry' => { 'uaa_url' => uaa.url, 'routing_api_client_id' => 'another' },
                   'uaa_admin' => { 'client_id' => 'root' } }
    rendered(job(properties)) do |it|
      expect(run_process(it)).to match([0, anything])
      expect(uaa.clients.keys).to eq(['another'])
    end
  ensure
    uaa&.close
  end

  it 'hands a secret that ends in a newline on as it is' do
    uaa = Uaa.new(%w[admin hidden-admin])
    properties = { 'cloud_foundry' => { 'uaa_url' => uaa.url, 'routing_api_client_secret' => "last\n" } }
    rendered(job(properties)) do |it|
      expect(run_process(it)).to match([0, anything])
      expect(uaa.clients['cf_route_sync']['client_secret']).to eq("last\n")
    end
  ensure
    uaa&.close
  end

  it 'changes nothing of a client that it made, and leaves one of another alone unless it is to take it over' do
    uaa = Uaa.new(%w[admin hidden-admin])
    theirs = { 'client_id' => 'routing_api_client', 'client_secret' => 'theirs',
               'authorities' => ['routing.routes.read'], 'authorized_grant_types' => ['client_credentials'] }
    uaa.clients['routing_api_client'] = theirs.dup
    run = lambda do |id, **more|
      changed = { 'cloud_foundry' => { 'uaa_url' => uaa.url, 'routing_api_client_id' => id }, **more }
      rendered(job(changed)) { |it| run_process(it) }
    end
    expect(run.('cf_route_sync')).to match([0, /created/])
    expect(run.('cf_route_sync')).to match([0, /nothing changed/])
    expect(run.('routing_api_client')).to match([1, /was made by somebody else and stays as it is/])
    expect(uaa.clients['routing_api_client']).to eq(theirs)
    expect(run.('routing_api_client', 'uaa_client' => { 'take_over' => true })).to match([0, /updated: .*secret/])
    expect(uaa.clients['routing_api_client']['client_secret']).to eq('hidden-client')
    expect(run.('routing_api_client')).to match([0, /nothing changed/])
  ensure
    uaa&.close
  end

  it 'fails where nobody answers, and puts no secret on the command line' do
    rendered(job('cloud_foundry' => { 'uaa_url' => 'http://127.0.0.1:1' })) do |it|
      expect(run_process(it).first).to eq(1)
      expect(it.text('config/bpm.yml')).not_to include('hidden')
    end
  end

  it 'verifies the UAA by the authorities it is given' do
    rendered(job('cloud_foundry' => { 'ca_certs' => Pem::CA })) do |it|
      expect(it.config['uaa']).to include('ca_file' => "#{it.folder}/config/certs/uaa_ca.crt")
      expect(it.text('config/certs/uaa_ca.crt').strip).to eq(Pem::CA.strip)
    end
    rendered(job('cloud_foundry' => { 'skip_tls_verification' => true })) do |it|
      expect(it.config['uaa']).to include('skip_tls_verification' => true)
    end
  end

  it 'names what is missing or contradicts itself' do
    told = refusal(job(base: {}))
    expect(told).to include('`cloud_foundry.uaa_url`', '`cloud_foundry.routing_api_client_id`',
                            '`cloud_foundry.routing_api_client_secret`', '`uaa_admin.client_secret`')
    expect(refusal(job('uaa_admin' => { 'client_secret' => "last\n" }))).to include('`uaa_admin.client_secret`')
    expect(refusal(job('uaa_admin' => { 'client_id' => ' ' }))).to include('`uaa_admin.client_id`')
    expect(refusal(job('cloud_foundry' => { 'skip_tls_verification' => 'x' })))
      .to include('`cloud_foundry.skip_tls_verification`')
    expect(refusal(job('uaa_client' => { 'take_over' => 'x' }))).to include('`uaa_client.take_over`')
    expect(refusal(job('cloud_foundry' => { 'skip_tls_verification' => true, 'ca_certs' => Pem::CA })))
      .to include('`cloud_foundry.ca_certs`')
  end
end

describe 'the errand route-sync-smoke-tests' do
  let(:instance) { InstanceSpec.new(ip: '10.0.0.5') }

  def job(properties = {})
    RenderedJob.new('route-sync-smoke-tests', { 'smoke_tests' => properties }, spec: instance)
  end

  def args(properties = {}) = YAML.safe_load(job(properties).render('config/bpm.yml'))['processes'].first['args']

  usual = %w[smoke-test --config /var/vcap/jobs/route-sync/config/route-sync.yml --timeout 120s --address 10.0.0.5]

  {
    'nothing' => [{}, usual],
    'only questions' => [{ 'preflight_only' => true }, usual.dup.insert(3, '--preflight')],
    'a namespace' => [{ 'namespace' => 'trial' }, [*usual, '--namespace', 'trial']],
    'an HTTP router' => [{ 'http_router' => '10.0.32.11:80' }, [*usual, '--http-router', '10.0.32.11:80']],
    'a TCP port' => [{ 'tcp_router' => 'tcp.example.com', 'tcp_port' => 1032 },
                     [*usual, '--tcp-router', 'tcp.example.com', '--tcp-port', '1032']],
    'an address' => [{ 'address' => '10.0.0.6:18080' }, [*usual[0..-2], '10.0.0.6:18080']],
    'a port' => [{ 'port' => 18_080 }, [*usual[0..-2], '10.0.0.5:18080']],
    'a timeout' => [{ 'timeout_seconds' => 30 }, usual.map { |arg| arg == '120s' ? '30s' : arg }],
  }.each do |what, (properties, expected)|
    it "tells the program what to try, and is understood: #{what}" do
      expect(args(properties)).to eq(expected)
      _, output, status = Open3.capture3(PROGRAM, *expected[0..], chdir: '/')
      # There is no such configuration here, which is told only once the words are understood.
      expect(output).to include('/var/vcap/jobs/route-sync/config/route-sync.yml')
      expect(status.exitstatus).to eq(2)
      expect(output).not_to match(/usage/i)
    end
  end

  it 'has its port behind an address of IPv6' do
    errand = RenderedJob.new('route-sync-smoke-tests', { 'smoke_tests' => { 'port' => '18080' } },
                             spec: InstanceSpec.new(ip: 'fd00::5'))
    process = YAML.safe_load(errand.render('config/bpm.yml'))['processes'].first
    expect(process['args']).to end_with('--address', '[fd00::5]:18080')
  end

  it 'may read the configuration of the job beside it and is given nothing else' do
    process = YAML.safe_load(job.render('config/bpm.yml'))['processes'].first
    expect(process['unsafe']).to eq('unrestricted_volumes' => [{ 'path' => '/var/vcap/jobs/route-sync/config' }])
    expect(process).not_to include('capabilities', 'ephemeral_disk', 'env')
  end

  it 'names what is missing or makes no sense' do
    expect(refusal(job('tcp_port' => 1032))).to include('`smoke_tests.tcp_router` is missing')
    expect(refusal(job('tcp_router' => 'tcp'))).to include('`smoke_tests.tcp_port` is missing')
    expect(refusal(job('timeout_seconds' => 0))).to include('`smoke_tests.timeout_seconds`')
    expect(refusal(job('port' => 65_536))).to include('`smoke_tests.port`')
    expect(refusal(job('port' => 18_080, 'address' => '10.0.0.6'))).to include('only one of `smoke_tests.port` and')
    expect(refusal(job('preflight_only' => 'x'))).to include('`smoke_tests.preflight_only`')
  end

  it 'says where it belongs when the job is not beside it' do
    Dir.mktmpdir('bosh-') do |root|
      job.write("#{root}/errand", within: root)
      output, status = Open3.capture2e("#{root}/errand/bin/run")
      expect([status.exitstatus, output]).to match([1, /--instance master/])
    end
  end
end

%w[route-sync-smoke-tests register-uaa-client].each do |name|
  describe "bin/run of #{name}" do
    [0, 3].each do |code|
      it "ends as the program does under BPM: #{code}" do
        Dir.mktmpdir('bosh-') do |root|
          RenderedJob.new(name, ENOUGH[name]).write("#{root}/jobs/#{name}", within: root)
          { 'jobs/bpm/bin/bpm' => "#!/bin/bash\necho \"bpm $*\"\nexit #{code}\n",
            'jobs/route-sync/config/route-sync.yml' => '{}' }.each do |path, text|
            FileUtils.mkdir_p(File.dirname("#{root}/#{path}"))
            File.write("#{root}/#{path}", text)
            File.chmod(0o755, "#{root}/#{path}")
          end
          output, status = Open3.capture2e("#{root}/jobs/#{name}/bin/run")
          expect([output, status.exitstatus]).to eq(["bpm run #{name}\n", code])
        end
      end
    end
  end
end
