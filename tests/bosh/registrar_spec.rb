# frozen_string_literal: true

# The job `kubernetes-api-route-registrar`: what its configuration says for which properties and links.

require_relative 'spec_helper'

describe 'the job kubernetes-api-route-registrar' do
  let(:enough) do
    {
      'cloud_foundry' => {
        'api_url' => 'https://api.sys.example.com',
        'uaa_url' => 'https://uaa.service.cf.internal:8443',
        'uaa_client_id' => 'cf_route_sync',
        'uaa_client_secret' => 'client-secret',
      },
      'external_kubo_port' => 6443,
      'tls' => { 'kubernetes' => { 'ca' => Pem::CA } },
    }
  end
  let(:instance) do
    InstanceSpec.new(name: 'master', id: '5e6f7a8b-0000-4000-8000-000000000000', ip: '10.0.0.5',
                     address: 'q-s0.master.default.cfcr.bosh', deployment: 'cfcr')
  end

  def job(properties = nil, links: [], base: enough, spec: instance, **changed)
    RenderedJob.new('kubernetes-api-route-registrar', merged(base, properties || changed), links:, spec:)
  end

  it 'configures one route, gated on the apiserver of its own machine and verified' do
    deployed(job) do |it|
      folder = "#{it.folder}/config"
      expect(it.config).to eq(
        'uaa' => {
          'url' => 'https://uaa.service.cf.internal:8443', 'client_id' => 'cf_route_sync',
          'client_secret_file' => "#{folder}/uaa_client_secret", 'skip_tls_verification' => false,
        },
        'routing_api' => {
          'url' => 'https://api.sys.example.com', 'ttl' => '120s', 'skip_tls_verification' => false,
          # The first eight of `printf cfcr/6443 | sha256sum`, and of the instance's id.
          'instance_id' => 'rs-76751532-5e6f7a8b',
        },
        'static_routes' => [
          {
            'name' => 'kubernetes-api', 'port' => 6443, 'backends' => ['10.0.0.5:8443'],
            'health' => {
              'url' => 'https://127.0.0.1:8443/readyz', 'interval' => '5s', 'skip_tls_verification' => false,
              'ca_file' => "#{folder}/certs/kubernetes_ca.crt", 'server_name' => 'master.cfcr.internal',
            },
          },
        ],
        'state' => { 'dir' => "#{it.root}/data/kubernetes-api-route-registrar" },
        'admin' => { 'listen' => '127.0.0.1:9102' },
        'log' => { 'format' => 'lager', 'level' => 'info' },
      )
    end
  end

  it 'marks the rows of each instance, port and deployment as its own, the same again at each render' do
    mark = lambda do |port: 6443, **spec|
      given = { name: 'master', ip: '10.0.0.5', deployment: 'cfcr', id: '5e6f7a8b-1' }.merge(spec)
      text = job({ 'external_kubo_port' => port }, spec: InstanceSpec.new(**given)).render('config/route-sync.yml')
      YAML.safe_load(text)['routing_api']['instance_id']
    end
    marks = [mark.(), mark.(id: '0a6f7a8b-1'), mark.(deployment: 'other'), mark.(port: 6444)]
    expect(marks.uniq.size).to eq(4)
    expect(marks).to all(match(/\Ars-\h{8}-\h{8}\z/))
    expect(mark.()).to eq(marks.first)
  end

  it 'tells the routers an IPv6 address as one' do
    deployed(job(spec: InstanceSpec.new(ip: 'fd00::5', id: '5e6f7a8b-1'))) do |it|
      expect(it.config['static_routes'].first['backends']).to eq(['[fd00::5]:8443'])
    end
  end

  it 'runs under BPM without privileges, with limits and no secret in arguments or environment' do
    deployed(job) do |it|
      expect(it.yaml('config/bpm.yml')['processes']).to eq(
        [{
          'name' => 'kubernetes-api-route-registrar', 'executable' => "#{it.root}/packages/route-sync/bin/route-sync",
          'args' => ['run', '--config', "#{it.folder}/config/route-sync.yml"], 'ephemeral_disk' => true,
          'limits' => { 'memory' => '128M', 'open_files' => 1024, 'processes' => 64 },
        }],
      )
    end
  end

  it 'ships indicators over metrics that the program has' do
    known = File.read(File.join(RELEASE, 'docs/reference.md')).scan(/^\| `(route_sync_\w+)`/).flatten
    deployed(job) do |it|
      used = it.text('config/indicators.yml').scan(/route_sync_\w+/)
      expect(used).not_to be_empty
      expect(used - known).to be_empty
    end
  end

  folder = '/var/vcap/jobs/kubernetes-api-route-registrar/config'
  config = 'config/route-sync.yml'
  bpm = 'config/bpm.yml'
  health = 'static_routes.0.health'
  pair = ->(group) { { "#{group}.client_cert" => Pem::CLIENT_CERT, "#{group}.client_key" => Pem::CLIENT_KEY } }
  changes = [
    ['external_kubo_port', '7443', config, 'static_routes.0.port', 7443],
    ['backend_port', 6443, config, 'static_routes.0.backends', ['10.0.0.5:6443']],
    ['backend_port', 6443, config, "#{health}.url", 'https://127.0.0.1:6443/readyz'],
    # Without effect.
    ['register_interval', 5, config, 'routing_api.ttl', '120s'],
    ['cloud_foundry.api_url', 'https://api.example.com', config, 'routing_api.url', 'https://api.example.com'],
    ['cloud_foundry.uaa_url', 'https://uaa.example.com', config, 'uaa.url', 'https://uaa.example.com'],
    ['cloud_foundry.uaa_client_id', 4711, config, 'uaa.client_id', '4711'],
    ['cloud_foundry.uaa_client_secret', 'hidden', 'config/uaa_client_secret', nil, 'hidden'],
    ['cloud_foundry.skip_tls_verification', true, config, 'uaa.skip_tls_verification', true],
    ['cloud_foundry.skip_tls_verification', true, config, 'routing_api.skip_tls_verification', true],
    ['cloud_foundry.ca_certs', Pem::OTHER_CA, config, 'uaa.ca_file', "#{folder}/certs/uaa_ca.crt"],
    ['cloud_foundry.ca_certs', Pem::OTHER_CA, 'config/certs/uaa_ca.crt', nil, Pem::OTHER_CA],
    ['cloud_foundry.ca_certs', Pem::OTHER_CA, 'config/certs/routing_api_ca.crt', nil, Pem::OTHER_CA],
    [pair.('cloud_foundry.routing_api'), config, 'routing_api.client_cert_file', "#{folder}/certs/routing_api_client.crt"],
    [pair.('cloud_foundry.routing_api'), config, 'routing_api.client_key_file', "#{folder}/certs/routing_api_client.key"],
    ['cloud_foundry.routing_api.server_ca_cert', Pem::OTHER_CA,
     config, 'routing_api.ca_file', "#{folder}/certs/routing_api_ca.crt"],
    ['cloud_foundry.router_group', 'other-tcp', config, 'routing_api.router_group', 'other-tcp'],
    ['cloud_foundry.tcp_route_ttl', 60, config, 'routing_api.ttl', '60s'],
    ['health.enabled', false, config, health, nil],
    ['health.url', 'https://10.0.0.5:8443/healthz', config, "#{health}.url", 'https://10.0.0.5:8443/healthz'],
    ['health.server_name', 'kubernetes', config, "#{health}.server_name", 'kubernetes'],
    ['health.server_name', '', config, "#{health}.server_name", nil],
    ['health.skip_tls_verification', true, config, "#{health}.skip_tls_verification", true],
    ['health.skip_tls_verification', true, config, "#{health}.ca_file", nil],
    ['health.interval_seconds', 7, config, "#{health}.interval", '7s'],
    [pair.('health'), config, "#{health}.cert_file", "#{folder}/certs/health_client.crt"],
    [pair.('health'), config, "#{health}.key_file", "#{folder}/certs/health_client.key"],
    [pair.('health'), 'config/certs/health_client.crt', nil, Pem::CLIENT_CERT],
    [pair.('health'), 'config/certs/health_client.key', nil, Pem::CLIENT_KEY],
    ['health.token', 'hidden', config, "#{health}.token_file", "#{folder}/health_token"],
    ['health.token', 'hidden', 'config/health_token', nil, 'hidden'],
    ['tls.kubernetes', { 'ca' => Pem::OTHER_CA }, 'config/certs/kubernetes_ca.crt', nil, Pem::OTHER_CA],
    ['http_proxy', 'http://me:pw@10.0.0.9:3128', bpm, 'processes.0.env',
     { 'http_proxy' => 'http://10.0.0.9:3128', 'HTTP_PROXY' => 'http://10.0.0.9:3128' }],
    ['https_proxy', '10.0.0.9:3128', bpm, 'processes.0.env',
     { 'https_proxy' => '10.0.0.9:3128', 'HTTPS_PROXY' => '10.0.0.9:3128' }],
    ['no_proxy', '.internal', bpm, 'processes.0.env', { 'no_proxy' => '.internal', 'NO_PROXY' => '.internal' }],
    ['drain_wait', 0, 'bin/drain', nil, /^readonly wait=0$/],
    ['drain.timeout_seconds', 45, 'bin/drain', nil, /^readonly seconds=45$/],
    ['post_start.wait_for_sync', true, 'bin/post-start', nil, %r{^readonly page=http://127.0.0.1:9102/ready$}],
    ['post_start.timeout_seconds', 300, 'bin/post-start', nil, /^readonly seconds=300$/],
    ['listen.address', '0.0.0.0', config, 'admin.listen', '0.0.0.0:9102'],
    ['listen.port', 9999, config, 'admin.listen', '127.0.0.1:9999'],
    ['listen.port', 9999, 'bin/post-start', nil, %r{127.0.0.1:9999/live}],
    ['listen.port', 9999, 'bin/drain', nil, %r{127.0.0.1:9999/live}],
    ['listen.port', 9999, 'config/prom_scraper_config.yml', 'port', 9999],
    ['log.level', 'debug', config, 'log.level', 'debug'],
    ['log.format', 'text', config, 'log.format', 'text'],
    ['limits.memory', '1G', bpm, 'processes.0.limits.memory', '1G'],
    ['limits.open_files', 2048, bpm, 'processes.0.limits.open_files', 2048],
    ['limits.processes', 32, bpm, 'processes.0.limits.processes', 32],
    ['limits.open_files', '04096', bpm, 'processes.0.limits.open_files', 4096],
    ['limits.processes', '064', bpm, 'processes.0.limits.processes', 64],
    *metrics_changes(folder),
  ]

  each_property('kubernetes-api-route-registrar', changes)

  describe 'links' do
    it 'give authorities where no property does' do
      kube_apiserver = Link.new(name: 'kube-apiserver', instances: [LinkInstance.new],
                                properties: { 'tls' => { 'kubernetes' => { 'ca' => Pem::OTHER_CA } } })
      routing_api = Link.new(name: 'routing_api', instances: [LinkInstance.new],
                             properties: { 'uaa' => { 'ca_cert' => Pem::OTHER_CA }, 'routing_api' => { 'max_ttl' => '60s' } })
      links = [kube_apiserver, routing_api]
      deployed(job(base: without(enough, 'tls'), links:)) do |it|
        expect(it.text('config/certs/kubernetes_ca.crt').strip).to eq(Pem::OTHER_CA.strip)
        expect(it.text('config/certs/uaa_ca.crt').strip).to eq(Pem::OTHER_CA.strip)
        expect(it.config['uaa']).to have_key('ca_file')
        expect(it.config['routing_api']['ttl']).to eq('60s')
      end
      deployed(job({ 'cloud_foundry' => { 'ca_certs' => Pem::CA } }, links:)) do |it|
        expect(it.text('config/certs/kubernetes_ca.crt').strip).to eq(Pem::CA.strip)
        expect(it.text('config/certs/uaa_ca.crt').strip).to eq(Pem::CA.strip)
      end
      expect(refusal(job({ 'cloud_foundry' => { 'tcp_route_ttl' => 61 } }, links:)))
        .to include('`cloud_foundry.tcp_route_ttl` is 61')
    end
  end

  describe 'secrets' do
    AWKWARD.each do |what, text|
      it "arrive intact: #{what}" do
        properties = { 'cloud_foundry' => { 'uaa_client_secret' => text, 'uaa_client_id' => text } }
        deployed(job(properties)) do |it|
          uaa = it.config['uaa']
          expect(uaa['client_id']).to eq(text)
          if text.end_with?("\n", "\r")
            expect(uaa['client_secret']).to eq(text)
          else
            expect(it.text('config/uaa_client_secret')).to eq("#{text}\n")
          end
        end
      end
    end
  end

  describe 'proxies' do
    include_examples 'proxies are shown without credentials, or refused'
  end

  describe 'metrics' do
    include_examples 'metrics over TLS are whole or refused'
  end

  describe 'what is missing or contradicts itself' do
    %w[cloud_foundry.api_url cloud_foundry.uaa_url cloud_foundry.uaa_client_id cloud_foundry.uaa_client_secret
       external_kubo_port].each do |name|
      it "is named: #{name}" do
        expect(refusal(job(base: without(enough, name)))).to include("`#{name}` is missing")
      end
    end

    it 'is named: an apiserver that cannot be verified' do
      told = refusal(job(base: without(enough, 'tls')))
      expect(told).to include('`tls.kubernetes`', '`health.skip_tls_verification: true`', '`health.enabled: false`')
      deployed(job({ 'health' => { 'enabled' => false } }, base: without(enough, 'tls')))
      deployed(job({ 'health' => { 'skip_tls_verification' => true } }, base: without(enough, 'tls')))
    end

    {
      'external_kubo_port' => 443, 'backend_port' => 'x', 'cloud_foundry.tcp_route_ttl' => 4,
      'cloud_foundry.skip_tls_verification' => 'yes', 'health.enabled' => 'x', 'health.interval_seconds' => 31,
      'health.skip_tls_verification' => 'x', 'drain_wait' => 601, 'drain.timeout_seconds' => 0,
      'post_start.wait_for_sync' => 'x', 'post_start.timeout_seconds' => 0, 'listen.address' => '10.0.0.5',
      'listen.port' => 0, 'metrics.port' => 'x', 'log.format' => 'xml',
      'limits.memory' => '268435456', 'limits.open_files' => 63, 'limits.processes' => 'x',
      'tls.kubernetes' => "the ca's PEM by itself"
    }.each do |name, value|
      it "is named where its value makes no sense: #{name}: #{value}" do
        expect(refusal(job(nested(name, value)))).to include("`#{name}`")
        errors = Schema.errors(schema_of('kubernetes-api-route-registrar'), nested(name, value))
        expect(errors.join).to include("/#{name.tr('.', '/')} ")
      end
    end

    it 'is named: two words for one thing' do
      told = refusal(job('cloud_foundry' => { 'skip_tls_verification' => true, 'ca_certs' => Pem::CA }))
      expect(told).to include('`cloud_foundry.skip_tls_verification`').and include('`cloud_foundry.ca_certs`')
      told = refusal(job('health' => { 'token' => 'x', 'client_cert' => Pem::CLIENT_CERT, 'client_key' => Pem::CLIENT_KEY }))
      expect(told).to include('`health.token`').and include('`health.client_cert`')
      expect(refusal(job('health' => { 'client_cert' => Pem::CLIENT_CERT }))).to include('`health.client_key` is missing')
    end

    it 'is all named at once' do
      expect(refusal(job(base: {}))).to include(
        '`cloud_foundry.api_url`', '`cloud_foundry.uaa_url`', '`cloud_foundry.uaa_client_id`',
        '`cloud_foundry.uaa_client_secret`', '`external_kubo_port`', '`tls.kubernetes`',
      )
    end
  end
end
