# frozen_string_literal: true

# What a template is given: the documented contract of the director's evaluation context. Only the parts that the gem
# does not share are marked as this harness's own.

require_relative 'spec_helper'

describe 'a template' do
  around do |example|
    Dir.mktmpdir('bosh-') do |release|
      @folder = "#{release}/jobs/toy"
      FileUtils.mkdir_p("#{@folder}/templates")
      File.write("#{@folder}/spec", YAML.dump(
        'name' => 'toy', 'templates' => { 'file.erb' => 'config/file' }, 'packages' => [],
        'consumes' => [{ 'name' => 'peer', 'type' => 'peer', 'optional' => true }],
        'properties' => {
          'group.unset' => {}, 'group.set' => { 'default' => 'x' }, 'off' => { 'default' => true }, 'tree' => {},
        },
      ))
      @release = release
      example.run
    end
  end

  def rendered(text, spec: InstanceSpec.new, consumes: [], **properties)
    File.write("#{@folder}/templates/file.erb", text)
    ReleaseDir.new(@release).job('toy').template('config/file').render(properties, spec:, consumes:)
  end

  let(:peer) do
    Link.new(name: 'peer', instances: [LinkInstance.new(address: 'a', index: 0), LinkInstance.new(address: 'b', bootstrap: true)],
             properties: { 'group' => { 'port' => 1 } }, address: 'all.peers')
  end

  it 'has `p`, with defaults of the spec, of the call, or none' do
    expect(rendered("<%= p('group.set') %>")).to eq('x')
    expect(rendered("<%= p('group.set') %>", 'group' => { 'set' => 'y' })).to eq('y')
    expect(rendered("<%= p('group.unset', 'z') %>")).to eq('z')
    expect(rendered("<%= p(['group.unset', 'group.set']) %>")).to eq('x')
    expect(rendered("<%= p('group.unset', nil).inspect %>")).to eq('nil')
    expect { rendered("<%= p('group.unset') %>") }.to raise_error(/Can't find property '.*group\.unset/)
  end

  it 'takes false for a value and nothing for none' do
    expect(rendered("<%= p('off') %>", 'off' => false)).to eq('false')
    expect(rendered("<%= p('off') %>", 'off' => nil)).to eq('true')
  end

  it 'sees only properties that the spec declares' do
    expect { rendered("<%= p('stray') %>", 'stray' => 1) }.to raise_error(/stray/)
    expect(rendered("<%= p('tree')['deep'] %>", 'tree' => { 'deep' => 1 })).to eq('1')
  end

  it 'has `if_p` with its others' do
    text = "<% if_p('group.unset', 'off') do |a, b| %><%= a %><% end.else_if_p('group.set') do |c| %><%= c %>" \
           '<% end.else do %>none<% end %>'
    expect(rendered(text)).to eq('x')
    expect(rendered(text, 'group' => { 'unset' => 1 })).to eq('1')
    expect(rendered("<% if_p('group.unset') do |a| %>a<% end.else do %>none<% end %>")).to eq('none')
  end

  it 'has `link` and `if_link`, of links that the spec declares' do
    text = "<% if_link('peer') do |it| %><%= it.address %> <%= it.p('group.port') %> <%= it.p('no', 2) %> " \
           "<%= it.instances.map { |one| [one.address, one.index, one.bootstrap] } %><% end.else do %>none<% end %>"
    expect(rendered(text)).to eq('none')
    expect(rendered(text, consumes: [peer])).to eq('all.peers 1 2 [["a", 0, false], ["b", 4, true]]')
    expect(rendered("<%= link('peer').p('group.port') %>", consumes: [peer])).to eq('1')
    expect { rendered("<%= link('peer') %>") }.to raise_error(/peer/)
    expect { rendered("<%= link('peer').p('no') %>", consumes: [peer]) }.to raise_error(/Can't find property '.*no/)
    expect { rendered('', consumes: [Link.new(name: 'other')]) }.to raise_error(/'other' is not declared/)
  end

  it 'has `spec`' do
    spec = InstanceSpec.new(name: 'master', id: 'i', ip: '10.0.0.5', deployment: 'd', index: 2,
                            networks: { 'default' => { 'ip' => '192.168.0.0' } })
    text = '<%= [spec.name, spec.id, spec.ip, spec.deployment, spec.index, spec.networks.default.ip].join(" ") %>'
    expect(rendered(text, spec:)).to eq('master i 10.0.0.5 d 2 192.168.0.0')
  end

  it 'loses the line of a tag with a dash' do
    expect(rendered("<%- x = 1 -%>\n#!/bin/bash\n<%= x %>\n")).to eq("#!/bin/bash\n1\n")
  end

  it 'is not there where the spec does not list it' do
    expect { ReleaseDir.new(@release).job('toy').template('config/other') }.to raise_error(%r{config/other})
  end

  if defined?(Bosh::Template::EvaluationContext::Otherwise)
    it 'may not even ask for what the spec does not declare' do
      expect { rendered("<%= p('stray', 1) %>") }.to raise_error(/stray/)
      expect { rendered("<% if_p('stray') { } %>") }.to raise_error(/stray/)
      expect { rendered("<% if_link('stray') { } %>") }.to raise_error(/stray/)
    end
  end
end

describe 'render.rb' do
  it 'writes a job as the agent would, from properties, links and an instance in JSON' do
    Dir.mktmpdir('bosh-') do |root|
      given = {
        'properties' => without(ENOUGH['route-sync'], 'nats', 'tls'),
        'links' => {
          'nats' => { 'instances' => [{ 'address' => '10.0.0.9' }],
                      'properties' => { 'nats' => { 'port' => 4222, 'user' => 'u', 'password' => 'p' } } },
          'kube-apiserver' => { 'instances' => [], 'properties' => { 'tls' => { 'kubernetes' => { 'ca' => Pem::CA } } } },
        },
        'spec' => { 'name' => 'master', 'id' => 'abc', 'ip' => '10.0.0.5' },
      }
      given['properties']['nats'] = { 'allow_plaintext' => true }
      File.write("#{root}/given.json", JSON.generate(given))
      output, status = Open3.capture2e(File.join(__dir__, 'render.rb'), 'route-sync', "#{root}/given.json", "#{root}/out")
      expect([status.success?, output]).to eq([true, ''])
      config = YAML.load_file("#{root}/out/config/route-sync.yml")
      expect(config['leader_election']['identity']).to eq('master/abc')
      expect(config['nats']['servers']).to eq([{ 'host' => '10.0.0.9', 'port' => 4222 }])
      expect(File.executable?("#{root}/out/bin/drain")).to be(true)
      expect(File.stat("#{root}/out/config/uaa_client_secret").mode & 0o777).to eq(0o640)
    end
  end

  it 'names what is wrong and writes nothing' do
    Dir.mktmpdir('bosh-') do |root|
      File.write("#{root}/given.json", '{}')
      output, status = Open3.capture2e(File.join(__dir__, 'render.rb'), 'route-sync', "#{root}/given.json", "#{root}/out")
      expect(status.success?).to be(false)
      expect(output).to include('`cloud_foundry.uaa_url` is missing').and include('`tls.kubernetes`')
      expect(File.exist?("#{root}/out")).to be(false)
    end
  end
end
