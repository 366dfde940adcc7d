# frozen_string_literal: true

# The job `route-sync`: what its configuration says for which properties and links.

require_relative 'spec_helper'

describe 'the job route-sync' do
  # What has to be said where no link says it.
  let(:enough) do
    {
      'cloud_foundry' => {
        'uaa_url' => 'https://uaa.service.cf.internal:8443',
        'routing_api_url' => 'https://api.sys.example.com',
        'routing_api_client_id' => 'cf_route_sync',
        'routing_api_client_secret' => 'client-secret',
        'app_domain' => 'apps.example.com',
      },
      'nats' => {
        'machines' => ['10.0.16.5', '10.0.16.6'], 'user' => 'nats', 'password' => 'nats-password',
        'tls' => { 'client_cert' => Pem::CLIENT_CERT, 'client_key' => Pem::CLIENT_KEY, 'ca_cert' => Pem::CA },
      },
      'kubernetes' => { 'client_cert' => Pem::CLIENT_CERT, 'client_key' => Pem::CLIENT_KEY },
      'tls' => { 'kubernetes' => { 'ca' => Pem::CA } },
    }
  end
  let(:instance) { InstanceSpec.new(name: 'master', id: '5e6f7a8b-0000-4000-8000-000000000000', ip: '10.0.0.5') }
  let(:nats_tls) do
    Link.new(
      name: 'nats-tls',
      instances: [LinkInstance.new(address: 'q-m0.nats.default.cf.bosh'), LinkInstance.new(address: '10.9.0.2')],
      properties: {
        'nats' => {
          'port' => 4224, 'user' => 'link-user', 'password' => 'link-password', 'hostname' => 'nats.link.internal',
          'external' => { 'tls' => { 'ca' => Pem::OTHER_CA } },
        },
      },
    )
  end
  let(:nats) do
    Link.new(
      name: 'nats', instances: [LinkInstance.new(address: '10.8.0.1')],
      properties: { 'nats' => { 'port' => 4222, 'user' => 'plain-user', 'password' => 'plain-password' } },
    )
  end

  def job(properties = nil, links: [], base: enough, **changed)
    RenderedJob.new('route-sync', merged(base, properties || changed), links:, spec: instance)
  end

  describe 'with what has to be given and nothing else' do
    it 'configures both lanes, verified, with the defaults of the program' do
      deployed(job) do |it|
        folder = "#{it.folder}/config"
        expect(it.config).to eq(
          'kubernetes' => {
            'kubeconfig' => "#{folder}/kubeconfig", 'rescan_interval' => '300s', 'poll_interval' => '15s',
          },
          'uaa' => {
            'url' => 'https://uaa.service.cf.internal:8443', 'client_id' => 'cf_route_sync',
            'client_secret_file' => "#{folder}/uaa_client_secret", 'skip_tls_verification' => false,
          },
          'routing_api' => { 'url' => 'https://api.sys.example.com', 'ttl' => '120s', 'skip_tls_verification' => false },
          'nats' => {
            'servers' => [{ 'host' => '10.0.16.5', 'port' => 4224 }, { 'host' => '10.0.16.6', 'port' => 4224 }],
            'user' => 'nats', 'password_file' => "#{folder}/nats_password", 'interval' => '20s',
            'messages_per_second' => 5000, 'send_app' => true,
            'tls' => {
              'ca_file' => "#{folder}/certs/nats_ca.crt", 'cert_file' => "#{folder}/certs/nats_client.crt",
              'key_file' => "#{folder}/certs/nats_client.key", 'server_name' => 'nats.service.cf.internal',
            },
          },
          'routes' => {
            'app_domain' => 'apps.example.com', 'domains' => [], 'max_backends' => 8, 'max_tcp_backends' => 3,
            'max_removals' => 10, 'max_removals_percent' => 30, 'removals_window' => '60s', 'address_family' => 'ipv4',
          },
          'policy' => { 'hosts' => [], 'ports' => [] },
          'tcp' => { 'enabled' => true, 'on_foreign_backend' => 'hold' },
          'http' => { 'enabled' => true, 'on_foreign_endpoint' => 'hold' },
          'state' => { 'dir' => "#{it.root}/data/route-sync", 'max_age' => '600s' },
          'leader_election' => {
            'enabled' => true, 'name' => 'route-sync', 'namespace' => 'kube-system',
            'identity' => 'master/5e6f7a8b-0000-4000-8000-000000000000',
          },
          'admin' => { 'listen' => '127.0.0.1:9101' },
          'log' => { 'format' => 'lager', 'level' => 'info' },
        )
      end
    end

    it 'asks the apiserver with a client certificate' do
      deployed(job) do |it|
        kubeconfig = it.yaml('config/kubeconfig')
        expect(kubeconfig['clusters'].first['cluster']).to eq(
          'server' => 'https://master.cfcr.internal:8443', 'certificate-authority' => "#{it.folder}/config/ca.pem",
        )
        expect(kubeconfig['users'].first['user']).to eq(
          'client-certificate' => "#{it.folder}/config/certs/kubernetes_client.crt",
          'client-key' => "#{it.folder}/config/certs/kubernetes_client.key",
        )
        expect(it.text('config/ca.pem').strip).to eq(Pem::CA.strip)
      end
    end

    it 'runs under BPM without privileges, with limits and no secret in arguments or environment' do
      deployed(job) do |it|
        process, *others = it.yaml('config/bpm.yml')['processes']
        expect(others).to be_empty
        expect(process).to eq(
          'name' => 'route-sync', 'executable' => "#{it.root}/packages/route-sync/bin/route-sync",
          'args' => ['run', '--config', "#{it.folder}/config/route-sync.yml"], 'ephemeral_disk' => true,
          'limits' => { 'memory' => '256M', 'open_files' => 4096, 'processes' => 64 },
        )
      end
    end

    it 'tells the scraper where its metrics are' do
      deployed(job) do |it|
        expect(it.yaml('config/prom_scraper_config.yml')).to eq(
          'port' => 9101, 'source_id' => 'route-sync', 'instance_id' => '5e6f7a8b-0000-4000-8000-000000000000',
          'scheme' => 'http', 'path' => '/metrics',
        )
      end
    end

    it 'ships indicators over metrics that the program has' do
      known = File.read(File.join(RELEASE, 'docs/reference.md')).scan(/^\| `(route_sync_\w+)`/).flatten
      deployed(job) do |it|
        document = it.yaml('config/indicators.yml')
        expect(document['metadata']['labels']['deployment']).to eq('my-deployment')
        used = document['spec']['indicators'].flat_map { |indicator| indicator['promql'].scan(/route_sync_\w+/) }
        expect(used).not_to be_empty
        expect(used - known).to be_empty
      end
    end
  end

  # What each property changes: the property, a value, a file and what stands in it then.
  folder = '/var/vcap/jobs/route-sync/config'
  config = 'config/route-sync.yml'
  kubeconfig = 'config/kubeconfig'
  bpm = 'config/bpm.yml'
  certificates = { 'cert' => Pem::CLIENT_CERT, 'key' => Pem::CLIENT_KEY, 'ca' => Pem::OTHER_CA }
  changes = [
    ['cloud_foundry.uaa_url', 'https://uaa.example.com', config, 'uaa.url', 'https://uaa.example.com'],
    ['cloud_foundry.routing_api_url', 'https://api.example.com', config, 'routing_api.url', 'https://api.example.com'],
    ['cloud_foundry.routing_api_client_id', 'someone', config, 'uaa.client_id', 'someone'],
    ['cloud_foundry.routing_api_client_id', 4711, config, 'uaa.client_id', '4711'],
    ['cloud_foundry.routing_api_client_secret', 'hidden', 'config/uaa_client_secret', nil, "hidden\n"],
    ['cloud_foundry.routing_api_client_secret', 4711, 'config/uaa_client_secret', nil, "4711\n"],
    ['cloud_foundry.skip_tls_verification', true, config, 'uaa.skip_tls_verification', true],
    ['cloud_foundry.skip_tls_verification', true, config, 'routing_api.skip_tls_verification', true],
    ['cloud_foundry.ca_certs', certificates['ca'], config, 'uaa.ca_file', "#{folder}/certs/uaa_ca.crt"],
    ['cloud_foundry.ca_certs', certificates['ca'], config, 'routing_api.ca_file', "#{folder}/certs/routing_api_ca.crt"],
    ['cloud_foundry.ca_certs', certificates['ca'], 'config/certs/uaa_ca.crt', nil, certificates['ca']],
    ['cloud_foundry.ca_certs', certificates['ca'], 'config/certs/routing_api_ca.crt', nil, certificates['ca']],
    ['cloud_foundry.ca_certs', Pem::CA + Pem::OTHER_CA, 'config/certs/uaa_ca.crt', nil, Pem::CA + Pem::OTHER_CA],
    [{ 'cloud_foundry.routing_api.client_cert' => certificates['cert'],
       'cloud_foundry.routing_api.client_key' => certificates['key'] },
     config, 'routing_api.client_cert_file', "#{folder}/certs/routing_api_client.crt"],
    [{ 'cloud_foundry.routing_api.client_cert' => certificates['cert'],
       'cloud_foundry.routing_api.client_key' => certificates['key'] },
     config, 'routing_api.client_key_file', "#{folder}/certs/routing_api_client.key"],
    ['cloud_foundry.routing_api.server_ca_cert', certificates['ca'],
     config, 'routing_api.ca_file', "#{folder}/certs/routing_api_ca.crt"],
    ['cloud_foundry.routing_api.server_ca_cert', certificates['ca'], config, 'uaa.ca_file', nil],
    [{ 'cloud_foundry.routing_api.server_ca_cert' => certificates['ca'], 'cloud_foundry.ca_certs' => Pem::CA },
     'config/certs/routing_api_ca.crt', nil, certificates['ca']],
    ['cloud_foundry.router_group', 'other-tcp', config, 'routing_api.router_group', 'other-tcp'],
    ['cloud_foundry.tcp_route_ttl', 60, config, 'routing_api.ttl', '60s'],
    ['cloud_foundry.tcp_route_ttl', '60', config, 'routing_api.ttl', '60s'],
    ['cloud_foundry.reserved_ports', '2822,8853', config, 'routing_api.reserved_ports', '2822,8853'],
    ['cloud_foundry.app_domain', 'apps.example.net', config, 'routes.app_domain', 'apps.example.net'],
    ['cloud_foundry.app_domains', ['example.net'], config, 'routes.domains', ['example.net']],
    ['nats.machines', ['10.1.1.1'], config, 'nats.servers', [{ 'host' => '10.1.1.1', 'port' => 4224 }]],
    ['nats.port', 4299, config, 'nats.servers',
     [{ 'host' => '10.0.16.5', 'port' => 4299 }, { 'host' => '10.0.16.6', 'port' => 4299 }]],
    ['nats.port', '4299', config, 'nats.servers',
     [{ 'host' => '10.0.16.5', 'port' => 4299 }, { 'host' => '10.0.16.6', 'port' => 4299 }]],
    ['nats.user', 'someone', config, 'nats.user', 'someone'],
    ['nats.password', 'hidden', 'config/nats_password', nil, "hidden\n"],
    [{ 'nats.tls.enabled' => false, 'nats.allow_plaintext' => true }, config, 'nats.tls', nil],
    [{ 'nats.tls.client_cert' => certificates['cert'] },
     'config/certs/nats_client.crt', nil, certificates['cert']],
    [{ 'nats.tls.client_key' => certificates['key'] },
     'config/certs/nats_client.key', nil, certificates['key']],
    ['nats.tls.ca_cert', certificates['ca'], 'config/certs/nats_ca.crt', nil, certificates['ca']],
    ['nats.tls.server_name', 'nats.example.com', config, 'nats.tls.server_name', 'nats.example.com'],
    ['nats.tls.server_name', '', config, 'nats.tls.server_name', nil],
    [{ 'nats.allow_plaintext' => true, 'nats.tls' => {} }, config, 'nats.tls', nil],
    ['nats.messages_per_second', 700, config, 'nats.messages_per_second', 700],
    ['nats.send_app', false, config, 'nats.send_app', false],
    [{ 'api-token' => 'token', 'kubernetes' => {} }, kubeconfig, 'users.0.user', { 'token' => 'token' }],
    [{ 'kubernetes.client_cert' => certificates['cert'] },
     'config/certs/kubernetes_client.crt', nil, certificates['cert']],
    [{ 'kubernetes.client_key' => certificates['key'] },
     'config/certs/kubernetes_client.key', nil, certificates['key']],
    ['kubernetes.api_url', 'https://10.0.0.9:6443', kubeconfig, 'clusters.0.cluster.server', 'https://10.0.0.9:6443'],
    ['kubernetes.cluster_id', 'cluster-1', config, 'kubernetes.cluster_id', 'cluster-1'],
    ['tls.kubernetes', { 'ca' => Pem::OTHER_CA, 'private_key' => 'not ours' }, 'config/ca.pem', nil, Pem::OTHER_CA],
    [{ 'http_proxy' => 'http://10.0.0.9:3128', 'kubernetes.api_url' => 'http://127.0.0.1:8080' },
     config, 'kubernetes.proxy_url', 'http://10.0.0.9:3128'],
    ['http_proxy', 'http://10.0.0.9:3128', bpm, 'processes.0.env',
     { 'http_proxy' => 'http://10.0.0.9:3128', 'HTTP_PROXY' => 'http://10.0.0.9:3128' }],
    ['https_proxy', 'http://10.0.0.9:3128', config, 'kubernetes.proxy_url', 'http://10.0.0.9:3128'],
    [{ 'https_proxy' => 'http://10.0.0.9:3128', 'no_proxy' => '.cfcr.internal' },
     config, 'kubernetes.proxy_url', nil],
    ['no_proxy', '10.0.0.0/8', bpm, 'processes.0.env', { 'no_proxy' => '10.0.0.0/8', 'NO_PROXY' => '10.0.0.0/8' }],
    ['sync.resync_interval_seconds', 30, config, 'kubernetes.rescan_interval', '30s'],
    ['sync.poll_interval_seconds', 7, config, 'kubernetes.poll_interval', '7s'],
    ['sync.http_register_interval_seconds', 11, config, 'nats.interval', '11s'],
    ['tcp.enabled', false, config, 'tcp.enabled', false],
    ['tcp.enabled', false, config, 'uaa', nil],
    ['tcp.on_foreign_backend', 'join', config, 'tcp.on_foreign_backend', 'join'],
    ['http.enabled', false, config, 'http.enabled', false],
    ['http.enabled', false, config, 'nats', nil],
    ['http.on_foreign_endpoint', 'join', config, 'http.on_foreign_endpoint', 'join'],
    ['routes.max_backends', 0, config, 'routes.max_backends', 0],
    ['routes.max_tcp_backends', 2, config, 'routes.max_tcp_backends', 2],
    ['routes.max_removals', 99, config, 'routes.max_removals', 99],
    ['routes.max_removals_percent', 100, config, 'routes.max_removals_percent', 100],
    ['routes.removals_window_seconds', 5, config, 'routes.removals_window', '5s'],
    ['routes.address_family', 'ipv6', config, 'routes.address_family', 'ipv6'],
    ['policy.hosts', [{ 'namespaces' => ['shop', 'shop-*'], 'hosts' => ['shop', '*.shop'] }], config, 'policy.hosts',
     [{ 'namespaces' => ['shop', 'shop-*'], 'hosts' => ['shop', '*.shop'] }]],
    ['policy.ports', [{ 'namespaces' => ['databases'], 'ports' => '35000-35999' }], config, 'policy.ports',
     [{ 'namespaces' => ['databases'], 'ports' => '35000-35999' }]],
    ['state.enabled', false, config, 'state', nil],
    ['state.max_age_seconds', 90, config, 'state.max_age', '90s'],
    ['leader_election.enabled', false, config, 'leader_election.enabled', false],
    ['leader_election.name', 'other', config, 'leader_election.name', 'other'],
    ['leader_election.namespace', 'routing', config, 'leader_election.namespace', 'routing'],
    ['drain.mode', 'leave', 'bin/drain', nil, /^readonly mode=leave$/],
    ['drain.timeout_seconds', 45, 'bin/drain', nil, /^readonly seconds=45$/],
    ['post_start.wait_for_sync', true, 'bin/post-start', nil, %r{^readonly page=http://127.0.0.1:9101/ready$}],
    ['post_start.timeout_seconds', 300, 'bin/post-start', nil, /^readonly seconds=300$/],
    ['dns_health.enabled', true, 'bin/dns/healthy', nil, %r{127.0.0.1:9101/ready}],
    ['listen.address', '0.0.0.0', config, 'admin.listen', '0.0.0.0:9101'],
    ['listen.port', 9999, config, 'admin.listen', '127.0.0.1:9999'],
    ['listen.port', 9999, 'config/prom_scraper_config.yml', 'port', 9999],
    ['listen.port', 9999, 'bin/post-start', nil, %r{127.0.0.1:9999/live}],
    ['listen.port', 9999, 'bin/drain', nil, %r{127.0.0.1:9999/metrics}],
    ['log.level', 'info,route_sync::publish=debug', config, 'log.level', 'info,route_sync::publish=debug'],
    ['log.format', 'text', config, 'log.format', 'text'],
    ['limits.memory', '1G', bpm, 'processes.0.limits.memory', '1G'],
    ['limits.open_files', 65_536, bpm, 'processes.0.limits.open_files', 65_536],
    ['limits.processes', 32, bpm, 'processes.0.limits.processes', 32],
    ['limits.open_files', '04096', bpm, 'processes.0.limits.open_files', 4096],
    ['limits.processes', '064', bpm, 'processes.0.limits.processes', 64],
    *metrics_changes(folder),
  ]

  each_property('route-sync', changes)

  it 'writes what stands twice in a manifest twice, and no alias of it' do
    shop = ['shop']
    deployed(job('policy' => { 'hosts' => [{ 'namespaces' => shop, 'hosts' => shop }] })) do |it|
      expect(it.text('config/route-sync.yml')).not_to match(/[&*]\d/)
      expect(it.config['policy']['hosts']).to eq([{ 'namespaces' => ['shop'], 'hosts' => ['shop'] }])
    end
  end

  describe 'NATS' do
    it 'is not deployed without a client certificate, unless plain text is allowed in so many words' do
      told = refusal(job(base: without(enough, 'nats.tls')))
      expect(told).to include('`nats.tls.client_cert`').and include('`nats.allow_plaintext: true`')
    end

    it 'is not deployed with TLS switched off, unless plain text is allowed in so many words' do
      told = refusal(job('nats' => { 'tls' => { 'enabled' => false } }))
      expect(told).to include('`nats.tls.enabled` is off').and include('`nats.allow_plaintext: true`')
    end

    it 'comes from the link nats-tls where no property says it' do
      base = without(enough, 'nats.machines', 'nats.user', 'nats.password', 'nats.tls.ca_cert')
      deployed(job(base:, links: [nats_tls])) do |it|
        servers = [{ 'host' => 'q-m0.nats.default.cf.bosh', 'port' => 4224 }, { 'host' => '10.9.0.2', 'port' => 4224 }]
        expect(it.config['nats']).to include('servers' => servers, 'user' => 'link-user')
        expect(it.config['nats']['tls']['server_name']).to eq('nats.link.internal')
        expect(it.text('config/nats_password')).to eq("link-password\n")
        expect(it.text('config/certs/nats_ca.crt').strip).to eq(Pem::OTHER_CA.strip)
      end
    end

    it 'comes from the link nats-tls and not from nats where both are there' do
      base = without(enough, 'nats.machines', 'nats.user', 'nats.password', 'nats.tls.ca_cert')
      deployed(job(base:, links: [nats, nats_tls])) do |it|
        expect(it.config['nats']['user']).to eq('link-user')
        expect(it.text('config/nats_password')).to eq("link-password\n")
      end
    end

    it 'comes from properties before any link, each by itself' do
      links = [nats, nats_tls]
      deployed(job({ 'nats' => { 'port' => 4300, 'tls' => { 'server_name' => 'own' } } }, links:)) do |it|
        expect(it.config['nats']).to include('user' => 'nats', 'servers' => [
          { 'host' => '10.0.16.5', 'port' => 4300 }, { 'host' => '10.0.16.6', 'port' => 4300 },
        ])
        expect(it.config['nats']['tls']['server_name']).to eq('own')
        expect(it.text('config/nats_password')).to eq("nats-password\n")
        expect(it.text('config/certs/nats_ca.crt').strip).to eq(Pem::CA.strip)
      end
      deployed(job(base: without(enough, 'nats.user', 'nats.machines'), links:)) do |it|
        expect(it.config['nats']['user']).to eq('link-user')
        expect(it.text('config/nats_password')).to eq("nats-password\n")
      end
    end

    it 'comes from the link nats where plain text is allowed, whatever else is there' do
      base = without(enough, 'nats.machines', 'nats.user', 'nats.password', 'nats.tls')
      deployed(job({ 'nats' => { 'allow_plaintext' => true } }, base:, links: [nats, nats_tls])) do |it|
        expect(it.config['nats']).to include('user' => 'plain-user', 'servers' => [{ 'host' => '10.8.0.1', 'port' => 4222 }])
        expect(it.config['nats']).not_to have_key('tls')
        expect(it.text('config/nats_password')).to eq("plain-password\n")
      end
    end

    it 'is spoken to with TLS and the client certificate also where plain text were allowed' do
      deployed(job('nats' => { 'allow_plaintext' => true })) do |it|
        expect(it.config['nats']['tls']).to include('cert_file', 'key_file')
      end
    end

    it 'is verified where an authority is given, also without a client certificate' do
      base = without(enough, 'nats.tls.client_cert', 'nats.tls.client_key')
      deployed(job({ 'nats' => { 'allow_plaintext' => true } }, base:)) do |it|
        expect(it.config['nats']['tls'].keys).to contain_exactly('ca_file', 'server_name')
      end
    end

    it 'is reached by the address of a link that lists no instances' do
      link = Link.new(name: 'nats-tls', address: 'nats.service.cf.internal', properties: nats_tls.to_h['properties'])
      deployed(job(base: without(enough, 'nats.machines'), links: [link])) do |it|
        expect(it.config['nats']['servers']).to eq([{ 'host' => 'nats.service.cf.internal', 'port' => 4224 }])
      end
    end
  end

  describe 'the link routing_api' do
    def routing_api(properties)
      Link.new(name: 'routing_api', instances: [LinkInstance.new], properties:)
    end

    it 'gives UAA\'s authority where no property does' do
      links = [routing_api('uaa' => { 'ca_cert' => Pem::OTHER_CA })]
      deployed(job(links:)) do |it|
        expect(it.config['uaa']['ca_file']).to eq("#{it.folder}/config/certs/uaa_ca.crt")
        expect(it.text('config/certs/uaa_ca.crt').strip).to eq(Pem::OTHER_CA.strip)
        expect(it.config['routing_api']).not_to have_key('ca_file')
      end
      deployed(job({ 'cloud_foundry' => { 'ca_certs' => Pem::CA } }, links:)) do |it|
        expect(it.text('config/certs/uaa_ca.crt').strip).to eq(Pem::CA.strip)
      end
    end

    { '120s' => '120s', '2m' => '120s', '1m30s' => '90s', '45s' => '45s', '1h' => '120s', '' => '120s' }.each do |limit, ttl|
      it "bounds how long a row lives: #{limit.inspect}" do
        deployed(job(links: [routing_api('routing_api' => { 'max_ttl' => limit })])) do |it|
          expect(it.config['routing_api']['ttl']).to eq(ttl)
        end
      end
    end

    it 'refuses a TTL that the routing API would refuse' do
      links = [routing_api('routing_api' => { 'max_ttl' => '60s' })]
      expect(refusal(job({ 'cloud_foundry' => { 'tcp_route_ttl' => 90 } }, links:)))
        .to include('`cloud_foundry.tcp_route_ttl` is 90')
    end

    it 'names ports that no Service may claim, besides those of the property' do
      links = [routing_api('routing_api' => { 'reserved_system_component_ports' => [2822, 3457] })]
      deployed(job({ 'cloud_foundry' => { 'reserved_ports' => '8853' } }, links:)) do |it|
        expect(it.config['routing_api']['reserved_ports']).to eq('8853,2822,3457')
      end
    end
  end

  describe 'the apiserver' do
    let(:kube_apiserver) do
      Link.new(name: 'kube-apiserver', instances: [LinkInstance.new],
               properties: { 'tls' => { 'kubernetes' => { 'ca' => Pem::OTHER_CA } }, 'admin-password' => 'not ours' })
    end

    it 'is verified by the link\'s authority where no property gives one' do
      deployed(job(base: without(enough, 'tls'), links: [kube_apiserver])) do |it|
        expect(it.text('config/ca.pem').strip).to eq(Pem::OTHER_CA.strip)
        expect(Dir.glob("#{it.folder}/**/*").select { |path| File.file?(path) && File.read(path).include?('not ours') })
          .to be_empty
      end
      deployed(job(links: [kube_apiserver])) do |it|
        expect(it.text('config/ca.pem').strip).to eq(Pem::CA.strip)
      end
    end

    it 'is never asked unverified' do
      expect(refusal(job(base: without(enough, 'tls')))).to include('`tls.kubernetes`')
    end

    it 'is asked as one user: a token or a certificate' do
      expect(refusal(job('api-token' => 'token'))).to include('`api-token`').and include('`kubernetes.client_cert`')
      expect(refusal(job(base: without(enough, 'kubernetes'))))
        .to include('`api-token`').and include('`kubernetes.client_cert`')
      expect(refusal(job(base: without(enough, 'kubernetes.client_key')))).to include('`kubernetes.client_key` is missing')
      expect(refusal(job(base: without(enough, 'kubernetes.client_cert')))).to include('`kubernetes.client_cert` is missing')
    end

    {
      'nothing' => ['', true],
      'its name' => ['master.cfcr.internal', false],
      'a name above it' => ['cfcr.internal', false],
      'a name above it, with a dot' => ['.cfcr.internal', false],
      'a name above it, with a star' => ['*.cfcr.internal', false],
      'its port as well' => ['master.cfcr.internal:8443', false],
      'another port' => ['master.cfcr.internal:443', true],
      'everything' => ['*', false],
      'one of several' => ['localhost, 10.0.0.0/8 ,MASTER.cfcr.internal', false],
      'a name that only ends alike' => ['aster.cfcr.internal', true],
      'addresses only' => ['10.0.0.0/8', true],
    }.each do |what, (no_proxy, proxied)|
      it "is reached by a proxy or directly, as `no_proxy` names #{what}" do
        deployed(job('https_proxy' => 'http://10.0.0.9:3128', 'no_proxy' => no_proxy)) do |it|
          expect(it.config['kubernetes']['proxy_url']).to eq(proxied ? 'http://10.0.0.9:3128' : nil)
        end
      end
    end

    { '10.0.0.0/8' => false, '10.0.0.9' => false, '10.0.0.9:6443' => false, '10.0.0.9:1' => true, '10.1.0.0/16' => true,
      'fd00::/8' => true }.each do |no_proxy, proxied|
      it "at 10.0.0.9 is reached by a proxy or directly, as `no_proxy` names #{no_proxy}" do
        properties = { 'https_proxy' => 'webproxy.example.com:3128', 'no_proxy' => no_proxy,
                       'kubernetes' => { 'api_url' => 'https://10.0.0.9:6443' } }
        deployed(job(properties)) do |it|
          expect(it.config['kubernetes']['proxy_url']).to eq(proxied ? 'http://webproxy.example.com:3128' : nil)
        end
      end
    end

    it 'is reached by the proxy of its own scheme' do
      deployed(job('http_proxy' => 'http://10.0.0.9:3128')) do |it|
        expect(it.config['kubernetes']).not_to have_key('proxy_url')
      end
    end

    it 'is reached by a proxy with its credentials, which stand in no environment' do
      deployed(job('https_proxy' => 'http://user:pa%20ss@10.0.0.9:3128')) do |it|
        expect(it.config['kubernetes']['proxy_url']).to eq('http://user:pa%20ss@10.0.0.9:3128')
        expect(it.yaml('config/bpm.yml')['processes'].first['env'])
          .to eq('https_proxy' => 'http://10.0.0.9:3128', 'HTTPS_PROXY' => 'http://10.0.0.9:3128')
        expect(it.text('config/bpm.yml')).not_to match(/[&*]\d/)
      end
    end

    include_examples 'proxies are shown without credentials, or refused'

    it 'is not reached by a proxy that the program could not use' do
      expect(refusal(job('https_proxy' => 'socks5://10.0.0.9:1080'))).to include('`https_proxy`')
    end
  end

  describe 'passwords' do
    AWKWARD.each do |what, text|
      it "arrive intact: #{what}" do
        properties = { 'cloud_foundry' => { 'routing_api_client_secret' => text },
                       'nats' => { 'password' => text, 'user' => text }, 'api-token' => text }
        token_is_fine = !text.match?(/[\r\n\u0080-\u{10ffff}]/)
        base = token_is_fine ? without(enough, 'kubernetes') : enough
        properties.delete('api-token') unless token_is_fine
        deployed(job(properties, base:)) do |it|
          expect(it.config['nats']['user']).to eq(text)
          { %w[uaa client_secret] => 'uaa_client_secret', %w[nats password] => 'nats_password' }.each do |(group, key), file|
            found = it.config[group]
            if text.end_with?("\n", "\r")
              # A file is read without it.
              expect(found[key]).to eq(text)
              expect(found).not_to have_key("#{key}_file")
            else
              expect(found["#{key}_file"]).to eq("#{it.folder}/config/#{file}")
              expect(it.text("config/#{file}")).to eq("#{text}\n")
            end
          end
          expect(it.yaml('config/kubeconfig')['users'].first['user']).to eq('token' => text) if token_is_fine
        end
      end
    end
  end

  describe 'metrics' do
    include_examples 'metrics over TLS are whole or refused'
  end

  describe 'what is missing or contradicts itself' do
    %w[
      cloud_foundry.uaa_url cloud_foundry.routing_api_url cloud_foundry.routing_api_client_id
      cloud_foundry.routing_api_client_secret cloud_foundry.app_domain nats.machines nats.user nats.password
      nats.tls.ca_cert
    ].each do |name|
      it "is named: #{name}" do
        expect(refusal(job(base: without(enough, name)))).to include("`#{name}` is missing")
        expect(refusal(job(nested(name, name == 'nats.machines' ? [] : ' ')))).to include("`#{name}` is missing")
      end
    end

    [
      %w[cloud_foundry.routing_api.client_cert cloud_foundry.routing_api.client_key],
      %w[nats.tls.client_cert nats.tls.client_key],
    ].each do |cert, key|
      it "is named where only one half is there: #{cert}, #{key}" do
        both = merged(enough, merged(nested(cert, Pem::CLIENT_CERT), nested(key, Pem::CLIENT_KEY)))
        expect(refusal(job(base: without(both, key)))).to include("`#{key}` is missing beside `#{cert}`")
        expect(refusal(job(base: without(both, cert)))).to include("`#{cert}` is missing beside `#{key}`")
      end
    end

    {
      'tcp.enabled' => 'maybe', 'http.enabled' => 'true', 'nats.tls.enabled' => 'no', 'nats.allow_plaintext' => 1,
      'nats.send_app' => 'x', 'state.enabled' => 'x', 'leader_election.enabled' => 'x',
      'cloud_foundry.skip_tls_verification' => 'false', 'post_start.wait_for_sync' => 'x', 'dns_health.enabled' => 'x',
      'nats.port' => 0, 'listen.port' => 'x', 'sync.resync_interval_seconds' => 29, 'sync.poll_interval_seconds' => 0,
      'sync.http_register_interval_seconds' => 31, 'routes.max_backends' => -1, 'routes.max_tcp_backends' => 'x',
      'routes.max_removals' => 'x', 'routes.max_removals_percent' => 101, 'routes.removals_window_seconds' => 0,
      'routes.address_family' => 'ipv5', 'state.max_age_seconds' => 9, 'cloud_foundry.tcp_route_ttl' => 121,
      'nats.messages_per_second' => 0, 'tcp.on_foreign_backend' => 'x', 'http.on_foreign_endpoint' => 'x',
      'drain.mode' => 'x', 'drain.timeout_seconds' => 0, 'post_start.timeout_seconds' => 0,
      'listen.address' => '10.0.0.5', 'metrics.port' => 65_536, 'log.format' => 'xml', 'kubernetes.api_url' => 'master:8443',
      'limits.memory' => '268435456', 'limits.open_files' => 63, 'limits.processes' => 'x',
      'tls.kubernetes' => "the ca's PEM by itself",
      'nats.machines' => ['10.0.0.1:4222']
    }.each do |name, value|
      it "is named where its value makes no sense: #{name}: #{value}" do
        expect(refusal(job(nested(name, value)))).to include("`#{name}`")
        next if name == 'nats.machines'

        expect(Schema.errors(schema_of('route-sync'), nested(name, value)).join).to include("/#{name.tr('.', '/')} ")
      end
    end

    it 'is named: both lanes off' do
      expect(refusal(job('tcp' => { 'enabled' => false }, 'http' => { 'enabled' => false })))
        .to include('`tcp.enabled`').and include('`http.enabled`')
    end

    it 'is named: an authority that would verify nothing' do
      told = refusal(job('cloud_foundry' => { 'skip_tls_verification' => true, 'ca_certs' => Pem::CA }))
      expect(told).to include('`cloud_foundry.skip_tls_verification`').and include('`cloud_foundry.ca_certs`')
    end

    it 'is all named at once' do
      told = refusal(job(base: {}))
      expect(told).to include(
        '`cloud_foundry.uaa_url`', '`cloud_foundry.routing_api_url`', '`cloud_foundry.routing_api_client_id`',
        '`cloud_foundry.routing_api_client_secret`', '`cloud_foundry.app_domain`', '`nats.machines`', '`nats.user`',
        '`nats.password`', '`nats.tls.client_cert`', '`nats.allow_plaintext: true`', '`api-token`', '`tls.kubernetes`',
      )
    end

    it 'is not asked of a lane that is off' do
      base = without(enough, 'nats')
      deployed(job({ 'http' => { 'enabled' => false } }, base:)) { |it| expect(it.config).not_to have_key('nats') }
      base = without(enough, 'cloud_foundry.uaa_url', 'cloud_foundry.routing_api_url',
                     'cloud_foundry.routing_api_client_id', 'cloud_foundry.routing_api_client_secret')
      deployed(job({ 'tcp' => { 'enabled' => false } }, base:)) { |it| expect(it.config).not_to have_key('routing_api') }
    end
  end
end
