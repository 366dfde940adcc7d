# frozen_string_literal: true

# What the director, BPM and the bosh CLI take without a word and should not: names that do not fit, properties that
# nobody reads, keys that nobody knows, folders that are links.

require 'find'

require_relative 'spec_helper'

describe 'the release' do
  it 'has the jobs that are tested, and no others' do
    expect(Dir.children(File.join(RELEASE, 'jobs'))).to match_array(JOBS)
  end

  it 'keeps jobs, packages and src as folders, and config as the only link' do
    # The bosh CLI drops `packaging` without a word where packages/ or src/ is a link.
    %w[jobs packages src].each do |name|
      path = File.join(RELEASE, name)
      expect(File.directory?(path) && !File.symlink?(path)).to be(true), "#{name} is no folder of its own"
    end
    links = []
    Find.find(RELEASE) do |path|
      name = path.delete_prefix("#{RELEASE}/")
      # What git, cargo and the bosh CLI make.
      Find.prune if %w[.git target blobs dev_releases .dev_builds].include?(name)
      links << name if File.symlink?(path)
    end
    expect(links).to eq(['config'])
    expect(File.readlink(File.join(RELEASE, 'config'))).to eq('bosh-release/config')
  end
end

# What BPM 1.1.8, of kubo's last release, knows; a key it does not know is ignored without a word.
BPM_KEYS = {
  nil => %w[name executable args env additional_volumes capabilities ephemeral_disk hooks limits persistent_disk workdir
            unsafe],
  'limits' => %w[memory open_files processes],
  'unsafe' => %w[privileged unrestricted_volumes],
}.freeze

# What other releases' jobs put into the links that are read here.
LINK_PROPERTIES = {
  # nats-release, jobs nats-tls and nats.
  'nats' => %w[nats.user nats.password nats.hostname nats.port nats.external.tls.ca],
  # routing-release, job routing-api.
  'routing_api' => %w[routing_api.max_ttl routing_api.reserved_system_component_ports uaa.ca_cert],
  # kubo-release, job kube-apiserver, which shares `tls.kubernetes`.
  'kube-apiserver' => %w[tls.kubernetes.ca],
}.freeze

JOBS.each do |name|
  describe "the job #{name}, by itself" do
    folder = File.join(RELEASE, 'jobs', name)
    let(:spec) { job_spec(name) }
    let(:properties) { spec['properties'] }
    let(:sources) do
      Dir.glob('**/*', base: "#{folder}/templates").select { |path| File.file?("#{folder}/templates/#{path}") }
    end
    let(:texts) { sources.to_h { |source| [source, File.read("#{folder}/templates/#{source}")] } }
    let(:process) { YAML.safe_load(RenderedJob.new(name, ENOUGH[name]).render('config/bpm.yml'))['processes'] }

    it 'is called as its folder, and has all that a director asks of a job' do
      expect(spec['name']).to eq(name)
      expect(File.file?(File.join(folder, 'monit'))).to be(true)
      expect(spec.keys - %w[name description templates packages consumes provides properties]).to be_empty
    end

    it 'lists every template, and none that is not there' do
      expect(spec['templates'].keys).to match_array(sources)
      # Two templates of one base name would be one to the CLI's fingerprint, and each destination can be written once.
      expect(spec['templates'].values.uniq).to match_array(spec['templates'].values)
      expect(spec['templates']).to all(satisfy { |source, destination| source == "#{destination}.erb" })
    end

    it 'needs packages that are there' do
      expect(spec['packages']).to eq(['route-sync'])
      expect(File.file?(File.join(RELEASE, 'packages/route-sync/spec'))).to be(true)
    end

    it 'says of each property what it is, and what it is by default or for example' do
      properties.each do |property, about|
        expect(about.keys - %w[description default example]).to be_empty, property
        expect(about['description'].to_s.strip).not_to be_empty, property
        expect(about.key?('default') || about.key?('example')).to be(true), property
      end
    end

    it 'declares no property inside another' do
      parents = properties.keys.select { |one| properties.keys.any? { |other| other.start_with?("#{one}.") } }
      expect(parents).to be_empty
    end

    it 'reads every property that it declares' do
      # A deprecated one is only accepted.
      used = properties.reject { |_, about| about['description'].start_with?('Deprecated') }.keys
      unread = used.reject do |property|
        texts.values.any? { |text| text.match?(/(?<![\w.-])#{Regexp.escape(property)}(?![\w.-])/) }
      end
      expect(unread).to be_empty
    end

    it 'reads no property that it does not declare' do
      # Every text in quotes that looks like the name of one, wherever it stands.
      groups = properties.keys.map { |property| property.split('.').first }.uniq
      known = properties.keys + LINK_PROPERTIES.values.flatten
      texts.each do |source, text|
        asked = text.scan(/(?:\bp|if_p|\b(?:flag|number|seconds|choice|given|required|identity)\.)\('([^']+)'/).flatten
        asked += text.scan(/['"]((?:#{groups.map { |group| Regexp.escape(group) }.join('|')})\.[a-z_.]+)['"]/).flatten
        # Host names look like it too.
        asked = asked.grep_v(/\.internal\z/)
        expect(asked.uniq - known).to be_empty, source
      end
    end

    it 'reads of links what they are known to hold' do
      texts.each do |source, text|
        asked = text.scan(/link\.p\(\s*'([^']+)'/).flatten
        expect(asked - LINK_PROPERTIES.values.flatten).to be_empty, source
        links = text.scan(/\b(?:if_)?link\('([^']+)'\)/).flatten
        expect(links - (spec['consumes'] || []).map { |link| link['name'] }).to be_empty, source
      end
    end

    it 'needs no link' do
      expect(spec['consumes'] || []).to all(include('optional' => true))
      (spec['provides'] || []).each { |link| expect(link['properties'] - properties.keys).to be_empty }
      # No secret is handed to other jobs.
      handed = (spec['provides'] || []).flat_map { |link| link['properties'] }
      expect(handed.grep(/secret|password|token|key|cert/)).to be_empty
    end

    it 'has a schema of exactly its properties, which its defaults and examples satisfy' do
      schema = schema_of(name)
      expect(schema['$schema']).to eq(Schema::DRAFT)
      properties.each do |property, about|
        inner = property.split('.').reduce(schema) { |at, key| at&.dig('properties', key) }
        expect(inner).to be_a(Hash), "the schema lacks #{property}"
        value = about.fetch('default', about['example'])
        # What CredHub fills in is no certificate yet.
        next if value.to_s.start_with?('((')

        expect(Schema.errors(inner, value, property)).to be_empty
        # What is left out arrives as nothing, which only what is always needed may refuse.
        next if about.key?('default')

        refused = !Schema.errors(inner, nil, property).empty?
        expect(refused).to eq(ALWAYS_NEEDED.fetch(name).include?(property)), property
      end
      leaves = lambda do |at, path|
        next [path] unless at['properties'] && !properties.key?(path)

        at['properties'].flat_map { |key, inner| leaves.(inner, [path, key].compact.join('.')) }
      end
      expect(leaves.(schema, nil)).to match_array(properties.keys)
    end

    it 'has a schema that bounds numbers as its templates do' do
      texts.values.join.scan(/(?:number|seconds)\.\('([^']+)', (\d[\d_]*)\.\.(\d[\d_]*)\)/) do |property, least, most|
        inner = property.split('.').reduce(schema_of(name)) { |at, key| at['properties'][key] }
        expect([inner['minimum'], inner['maximum']]).to eq([least, most].map { |it| it.delete('_').to_i }), property
      end
    end

    it 'tells BPM nothing that it does not know, and asks for no privilege' do
      expect(process.map { |it| it['name'] }).to eq([name])
      process.each do |it|
        BPM_KEYS.each { |group, known| expect((group ? it[group] || {} : it).keys - known).to be_empty }
        expect(it['limits'].keys).to match_array(BPM_KEYS['limits'])
        expect(it).not_to include('capabilities', 'hooks', 'persistent_disk')
        expect(it.fetch('unsafe', {})).not_to have_key('privileged')
      end
    end

    it 'is watched by monit under the pid that BPM writes, or is an errand' do
      monit = File.read(File.join(folder, 'monit'))
      if spec['templates'].value?('bin/run')
        expect(monit).to be_empty
      else
        bpm = "/var/vcap/jobs/bpm/bin/bpm"
        expect(monit).to eq(<<~MONIT)
          check process #{name}
            with pidfile /var/vcap/sys/run/bpm/#{name}/#{name}.pid
            start program "#{bpm} start #{name}"
            stop program "#{bpm} stop #{name}"
            group vcap
        MONIT
      end
    end

    it 'has scripts that shellcheck has nothing to say about' do
      Dir.mktmpdir('bosh-') do |root|
        RenderedJob.new(name, ENOUGH[name]).write(root)
        scripts = Dir.glob("#{root}/bin/**/*").select { |path| File.file?(path) }
        expect(scripts).not_to be_empty
        output, status = Open3.capture2e('shellcheck', *scripts)
        expect(status.success?).to be(true), output
        scripts.each { |path| expect(File.readlines(path).first.chomp).to eq('#!/bin/bash') }
      end
    end

    it 'names in scripts and configuration only paths of its own, of the program and of BPM' do
      own = %W[/var/vcap/jobs/#{name}/ /var/vcap/data/#{name} /var/vcap/sys/log/#{name} /var/vcap/packages/route-sync/
               /var/vcap/jobs/bpm/]
      own << '/var/vcap/jobs/route-sync/config' if name == 'route-sync-smoke-tests'
      RenderedJob.new(name, ENOUGH[name]).files.each do |destination, text|
        paths = text.scan(%r{/var/vcap/[\w./-]*})
        expect(paths.reject { |path| own.any? { |prefix| path.start_with?(prefix) } }).to be_empty, destination
      end
    end
  end
end

# Refused by the schema already; everything else that may be missing depends on other properties.
ALWAYS_NEEDED = {
  'route-sync' => %w[cloud_foundry.app_domain],
  'kubernetes-api-route-registrar' => %w[external_kubo_port],
  'route-sync-smoke-tests' => [],
  'register-uaa-client' => %w[
    cloud_foundry.uaa_url cloud_foundry.routing_api_client_id cloud_foundry.routing_api_client_secret uaa_admin.client_secret
  ],
}.freeze

describe 'the jobs, beside the program' do
  # Every key of the program, and the property of which job says it.
  said = {
    'kubernetes.rescan_interval' => 'sync.resync_interval_seconds',
    'kubernetes.poll_interval' => 'sync.poll_interval_seconds',
    'kubernetes.proxy_url' => 'https_proxy',
    'kubernetes.cluster_id' => 'kubernetes.cluster_id',
    'uaa.url' => 'cloud_foundry.uaa_url',
    'uaa.client_id' => 'cloud_foundry.routing_api_client_id',
    'uaa.client_secret' => 'cloud_foundry.routing_api_client_secret',
    'uaa.client_secret_file' => 'cloud_foundry.routing_api_client_secret',
    'uaa.ca_file' => 'cloud_foundry.ca_certs',
    'uaa.skip_tls_verification' => 'cloud_foundry.skip_tls_verification',
    'routing_api.url' => 'cloud_foundry.routing_api_url',
    'routing_api.router_group' => 'cloud_foundry.router_group',
    'routing_api.ttl' => 'cloud_foundry.tcp_route_ttl',
    'routing_api.reserved_ports' => 'cloud_foundry.reserved_ports',
    'routing_api.ca_file' => 'cloud_foundry.routing_api.server_ca_cert',
    'routing_api.client_cert_file' => 'cloud_foundry.routing_api.client_cert',
    'routing_api.client_key_file' => 'cloud_foundry.routing_api.client_key',
    'routing_api.skip_tls_verification' => 'cloud_foundry.skip_tls_verification',
    'nats.servers[].host' => 'nats.machines',
    'nats.servers[].port' => 'nats.port',
    'nats.user' => 'nats.user',
    'nats.password' => 'nats.password',
    'nats.password_file' => 'nats.password',
    'nats.tls.ca_file' => 'nats.tls.ca_cert',
    'nats.tls.cert_file' => 'nats.tls.client_cert',
    'nats.tls.key_file' => 'nats.tls.client_key',
    'nats.tls.server_name' => 'nats.tls.server_name',
    'nats.interval' => 'sync.http_register_interval_seconds',
    'nats.messages_per_second' => 'nats.messages_per_second',
    'nats.send_app' => 'nats.send_app',
    'routes.app_domain' => 'cloud_foundry.app_domain',
    'routes.domains[]' => 'cloud_foundry.app_domains',
    'routes.max_backends' => 'routes.max_backends',
    'routes.max_tcp_backends' => 'routes.max_tcp_backends',
    'routes.max_removals' => 'routes.max_removals',
    'routes.max_removals_percent' => 'routes.max_removals_percent',
    'routes.removals_window' => 'routes.removals_window_seconds',
    'routes.address_family' => 'routes.address_family',
    'policy.hosts[].namespaces[]' => 'policy.hosts',
    'policy.hosts[].hosts[]' => 'policy.hosts',
    'policy.ports[].namespaces[]' => 'policy.ports',
    'policy.ports[].ports' => 'policy.ports',
    'tcp.enabled' => 'tcp.enabled',
    'tcp.on_foreign_backend' => 'tcp.on_foreign_backend',
    'http.enabled' => 'http.enabled',
    'http.on_foreign_endpoint' => 'http.on_foreign_endpoint',
    'state.dir' => 'state.enabled',
    'state.max_age' => 'state.max_age_seconds',
    'leader_election.enabled' => 'leader_election.enabled',
    'leader_election.name' => 'leader_election.name',
    'leader_election.namespace' => 'leader_election.namespace',
    'admin.listen' => 'listen.port',
    'metrics.listen' => 'metrics.port',
    'metrics.cert_file' => 'metrics.tls.cert',
    'metrics.key_file' => 'metrics.tls.key',
    'metrics.client_ca_file' => 'metrics.tls.ca_cert',
    'log.format' => 'log.format',
    'log.level' => 'log.level',
  }
  said_by_registrar = {
    'static_routes[].port' => 'external_kubo_port',
    'static_routes[].backends[]' => 'backend_port',
    'static_routes[].health.url' => 'health.url',
    'static_routes[].health.ca_file' => 'tls.kubernetes',
    'static_routes[].health.server_name' => 'health.server_name',
    'static_routes[].health.skip_tls_verification' => 'health.skip_tls_verification',
    'static_routes[].health.cert_file' => 'health.client_cert',
    'static_routes[].health.key_file' => 'health.client_key',
    'static_routes[].health.token_file' => 'health.token',
    'static_routes[].health.interval' => 'health.interval_seconds',
  }
  # And why no operator has to say the others.
  unsaid = {
    'kubernetes.kubeconfig' => 'the job makes it',
    'routing_api.instance_id' => 'the registrar makes it, and for route-sync the cluster is it',
    'leader_election.identity' => 'the instance is it',
    'static_routes[].name' => 'there is one route',
    'nats.servers[].user' => 'one login for all servers',
    'nats.servers[].password' => 'one login for all servers',
    'nats.servers[].password_file' => 'one login for all servers',
  }
  rows = File.read(File.join(RELEASE, 'docs/reference.md'))[/<!-- table: config -->.*?<!-- end -->/m]
             .scan(/^\| `([^`]+)` \| ([^|]*) \|.*\| ([^|]*) \|$/)
  rows = rows.reject { |_, _, meaning| meaning.start_with?('original name') }

  it 'let an operator say whatever the program can be told' do
    keys = rows.map(&:first)
    expect(keys).not_to be_empty
    expect(keys - said.keys - said_by_registrar.keys - unsaid.keys).to be_empty
    expect(said.values - job_spec('route-sync')['properties'].keys).to be_empty
    expect(said_by_registrar.values - job_spec('kubernetes-api-route-registrar')['properties'].keys).to be_empty
  end

  it 'have the defaults of the program, but for what is different in a job' do
    differs = {
      'leader_election.enabled' => 'masters run three copies',
      'log.format' => 'nobody reads a terminal there',
      'nats.tls.server_name' => 'servers are dialled by address',
      'state.dir' => 'a job has a folder',
    }
    told = rows.to_h { |key, default,| [key, default] }
    compared = 0
    said.except(*differs.keys).each do |key, property|
      about = job_spec('route-sync')['properties'][property]
      # Lists, addresses and what has no default are written in words there.
      next unless about.key?('default') && !told[key].match?(/required|none|\s|\d\.\d/)

      number, unit = told[key].match(/\A(\d+)(s|m|h)\z/)&.captures
      expected = number ? number.to_i * { 's' => 1, 'm' => 60, 'h' => 3600 }[unit] : YAML.safe_load(told[key])
      expect(about['default']).to eq(expected), "#{property} is #{about['default']}, #{key} is #{told[key]}"
      compared += 1
    end
    expect(compared).to be > 15
  end
end
