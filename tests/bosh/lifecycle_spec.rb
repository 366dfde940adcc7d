# frozen_string_literal: true

# The scripts that the agent calls: rendered, and run against stand-ins for the program, BPM and curl.

require 'socket'

require_relative 'spec_helper'

# A job on disk with everything that its scripts call.
class Machine
  attr_reader :root

  def initialize(job, root)
    @on_disk = OnDisk.new(job, root)
    @root = root
    @job = job.name
    # The program and BPM note what they were called with; a file says how a call ends.
    stand_in("#{root}/packages/route-sync/bin/route-sync", 'program')
    stand_in("#{root}/jobs/bpm/bin/bpm", 'bpm')
    # What a page answers stands in a file of its name; where there is none, nobody listens.
    script("#{root}/bin/curl", <<~'SH')
      while [ $# -gt 1 ]; do [ "$1" = --write-out ] && code=yes; [ "$1" = --fail ] && fail=yes; shift; done
      echo "$1" >>"$ROOT/curl.calls"
      page=$ROOT/pages/${1##*/}
      [ ! -e "$ROOT/curl.answer" ] || . "$ROOT/curl.answer"
      [ -e "$page" ] || exit 7
      status=$(head -n 1 "$page")
      [ -n "${fail:-}" ] && [ "$status" != 200 ] && exit 22
      tail -n +2 "$page"
      [ -z "${code:-}" ] || printf '\n%s' "$status"
    SH
    FileUtils.mkdir_p("#{root}/pages")
  end

  def page(name, status, text = '') = File.write("#{@root}/pages/#{name}", "#{status}\n#{text}\n")

  def acts(leads: true) = %w[live metrics].each { |name| page(name, 200, "route_sync_leader #{leads ? '1.0' : '0.0'}") }

  # The program itself in place of both its stand-in and curl's, with nobody to talk to, until the block has ended.
  def lives
    FileUtils.ln_sf(PROGRAM, "#{@root}/packages/route-sync/bin/route-sync")
    FileUtils.rm("#{@root}/bin/curl")
    config = "#{@on_disk.folder}/config/route-sync.yml"
    pid = Process.spawn(PROGRAM, 'run', '--config', config, %i[out err] => "#{@root}/out")
    # It waits until the program lives, whatever the machine is busy with.
    raise "the program does not live:\n#{File.read("#{@root}/out")}" unless run('post-start')[1].zero?

    yield
  ensure
    Process.kill('KILL', pid)
    Process.wait(pid)
  end

  # What the stand-in does when it is called.
  def answers(name, text) = File.write("#{@root}/#{name}.answer", text)

  def calls(name)
    File.exist?("#{@root}/#{name}.calls") ? File.readlines("#{@root}/#{name}.calls", chomp: true) : []
  end

  def log = File.read(log_path)

  def log_path = "#{@root}/sys/log/#{@job}/drain.log"

  # 124 where the script does not end by itself. No script here may wait for longer than two minutes.
  def run(script, env = {})
    env = { 'ROOT' => @root, 'PATH' => "#{@root}/bin:#{ENV.fetch('PATH')}" }.merge(env)
    out, err, status = Open3.capture3(env, 'timeout', '--kill-after=1', '120', "#{@on_disk.folder}/bin/#{script}")
    [out, status.exitstatus, err]
  end

  # A stop as the agent makes it.
  def stop(vm, instance, deployment)
    run('pre-stop', 'BOSH_VM_NEXT_STATE' => vm, 'BOSH_INSTANCE_NEXT_STATE' => instance,
                    'BOSH_DEPLOYMENT_NEXT_STATE' => deployment)
    run('drain')
  end

  private

  def stand_in(path, name)
    script(path, <<~SH)
      echo "$*" >>"$ROOT/#{name}.calls"
      echo 'words of #{name}'
      [ ! -e "$ROOT/#{name}.answer" ] || . "$ROOT/#{name}.answer"
    SH
  end

  def script(path, text)
    FileUtils.mkdir_p(File.dirname(path))
    File.write(path, "#!/bin/bash\n#{text}")
    File.chmod(0o755, path)
  end
end

def on_machine(job)
  Dir.mktmpdir('bosh-') { |root| yield Machine.new(job, root) }
end

describe 'bin/drain of route-sync' do
  def job(properties = nil, instances: 3, **changed)
    links = instances ? [Link.new(name: 'peers', instances: Array.new(instances) { LinkInstance.new })] : []
    RenderedJob.new('route-sync', merged(ENOUGH['route-sync'], properties || changed), links:)
  end

  kept = ['drain --keep']
  withdrawn = ['drain --unregister']
  # mode, instances, next state of VM, instance and deployment: what the program is told.
  [
    ['a restart or an update in place', 'auto', 3, %w[keep keep keep], kept],
    ['a recreated VM or a new stemcell', 'auto', 3, %w[delete keep keep], kept],
    ['one instance of several that goes', 'auto', 3, %w[delete delete keep], kept],
    ['the only instance that goes', 'auto', 1, %w[delete delete keep], withdrawn],
    ['an only instance that is recreated', 'auto', 1, %w[delete keep keep], kept],
    ['an instance that knows of no others', 'auto', nil, %w[delete delete keep], kept],
    ['a deleted deployment', 'auto', 3, %w[delete delete delete], withdrawn],
    ['a deleted deployment of one instance', 'auto', 1, %w[delete delete delete], withdrawn],
    ['any stop, in mode unregister', 'unregister', 3, %w[keep keep keep], withdrawn],
    ['any stop, in mode leave', 'leave', 1, %w[delete delete delete], kept],
    ['an agent that says something new', 'auto', 3, ['', 'hibernate', "keep\ndelete"], kept],
  ].each do |what, mode, instances, next_state, told|
    it "tells the program what becomes of its routes: #{what}" do
      on_machine(job({ 'drain' => { 'mode' => mode } }, instances:)) do |machine|
        machine.acts
        expect(machine.stop(*next_state).first(2)).to eq(["0\n", 0])
        words = told.map { |word| "#{word} --config #{machine.root}/jobs/route-sync/config/route-sync.yml" }
        expect(machine.calls('program')).to eq(words)
        expect(machine.log).to include('words of program')
      end
    end
  end

  it 'keeps routes where nobody said what the stop is for' do
    on_machine(job) do |machine|
      machine.acts
      expect(machine.run('drain').first(2)).to eq(["0\n", 0])
      expect(machine.calls('program').join).to start_with('drain --keep')
    end
  end

  it 'may be called twice' do
    on_machine(job) do |machine|
      machine.acts
      2.times { expect(machine.stop('delete', 'delete', 'delete').first(2)).to eq(["0\n", 0]) }
      expect(machine.calls('program').map { |call| call[/--\w+/] }).to eq(%w[--unregister --unregister])
    end
  end

  it 'asks again until everything is proven gone' do
    on_machine(job) do |machine|
      machine.acts
      machine.answers('program', '[ "$(wc -l <"$ROOT/program.calls")" -ge 2 ]')
      expect(machine.stop('delete', 'delete', 'delete').first(2)).to eq(["0\n", 0])
      expect(machine.calls('program').size).to eq(2)
      expect(machine.log).to include('every route is withdrawn')
    end
  end

  it 'stops an instance that stands by, which would else announce every route again' do
    on_machine(job) do |machine|
      machine.acts(leads: false)
      expect(machine.stop('delete', 'delete', 'delete').first(2)).to eq(["0\n", 0])
      expect(machine.calls('bpm')).to eq(['stop route-sync'])
      expect(machine.calls('program')).to be_empty
    end
  end

  it 'leaves an instance that stands by to the agent where routes are kept' do
    on_machine(job) do |machine|
      machine.acts(leads: false)
      expect(machine.stop('keep', 'keep', 'keep').first(2)).to eq(["0\n", 0])
      expect(machine.calls('bpm')).to be_empty
    end
  end

  {
    'refuses' => 'exit 1', 'hangs' => 'exec sleep 600', 'dies' => 'kill -9 $$',
  }.each do |what, answer|
    %w[leave unregister].each do |mode|
      it "lets the stop go on, within its time, where the program #{what} in mode #{mode}" do
        on_machine(job('drain' => { 'mode' => mode, 'timeout_seconds' => 2 })) do |machine|
          machine.acts
          machine.answers('program', answer)
          began = Process.clock_gettime(Process::CLOCK_MONOTONIC)
          expect(machine.stop('keep', 'keep', 'keep').first(2)).to eq(["0\n", 0])
          # Two seconds and what a busy machine adds; the program's own ten minutes would show.
          expect(Process.clock_gettime(Process::CLOCK_MONOTONIC) - began).to be < 120
        end
      end
    end
  end

  it 'reads nothing that the process may have put in place of what pre-stop wrote' do
    on_machine(job) do |machine|
      machine.acts
      next_state = "#{machine.root}/data/route-sync/next-state"
      File.write("#{machine.root}/elsewhere", "deployment=delete\n")
      FileUtils.ln_s("#{machine.root}/elsewhere", next_state)
      expect(machine.run('drain').first(2)).to eq(["0\n", 0])
      FileUtils.rm(next_state)
      File.mkfifo(next_state)
      expect(machine.run('drain').first(2)).to eq(["0\n", 0])
      expect(machine.calls('program').map { |call| call[/--\w+/] }).to eq(%w[--keep --keep])
    end
  end

  describe 'beside the program itself' do
    def nowhere(properties)
      port = TCPServer.open('127.0.0.1', 0) { |server| server.addr[1] }
      nobody = { 'cloud_foundry' => { 'uaa_url' => 'https://127.0.0.1:1', 'routing_api_url' => 'https://127.0.0.1:1' },
                 'nats' => { 'machines' => ['127.0.0.1'], 'port' => 1 }, 'listen' => { 'port' => port },
                 'kubernetes' => { 'api_url' => 'https://127.0.0.1:1' } }
      job(merged(nobody, properties))
    end

    %w[127.0.0.1 0.0.0.0].each do |address|
      it "keeps routes, listening on #{address}" do
        properties = { 'listen' => { 'address' => address }, 'leader_election' => { 'enabled' => false } }
        on_machine(nowhere(properties)) do |machine|
          machine.lives do
            kept = 'routes stay alive for whoever comes next'
            # It gives itself a second to answer, which a busy machine may need for other things.
            30.times.find do
              expect(machine.stop('keep', 'keep', 'keep').first(2)).to eq(["0\n", 0])
              machine.log.include?(kept)
            end
            expect(machine.log).to include(kept)
          end
        end
      end
    end

    it 'withdraws, and says what is not proven' do
      properties = { 'drain' => { 'timeout_seconds' => 1 }, 'leader_election' => { 'enabled' => false } }
      on_machine(nowhere(properties)) do |machine|
        machine.lives do
          expect(machine.stop('delete', 'delete', 'delete').first(2)).to eq(["0\n", 0])
          expect(machine.log).to include('not every route is proven gone after 1 s')
          expect(machine.calls('bpm')).to be_empty
        end
      end
    end

    it 'stops it where it stands by' do
      on_machine(nowhere({})) do |machine|
        machine.lives do
          expect(machine.stop('delete', 'delete', 'delete').first(2)).to eq(["0\n", 0])
          expect(machine.calls('bpm')).to eq(['stop route-sync'])
        end
      end
    end
  end

  it 'lets the stop go on where the program is not even there, or nothing can be logged' do
    on_machine(job('drain' => { 'mode' => 'unregister', 'timeout_seconds' => 1 })) do |machine|
      FileUtils.rm_rf("#{machine.root}/packages")
      expect(machine.run('drain').first(2)).to eq(["0\n", 0])
      FileUtils.rm_rf("#{machine.root}/sys")
      File.write("#{machine.root}/sys", 'no folder')
      expect(machine.run('drain').first(2)).to eq(["0\n", 0])
    end
  end
end

describe 'bin/pre-stop of route-sync' do
  def job
    RenderedJob.new('route-sync', {})
  end

  # It needs nothing but itself.
  def script(root)
    path = "#{root}/pre-stop"
    File.write(path, job.render('bin/pre-stop').gsub('/var/vcap/', "#{root}/"))
    File.chmod(0o755, path)
    path
  end

  it 'writes down what it is told, in place of what stood there' do
    Dir.mktmpdir('bosh-') do |root|
      path = script(root)
      [%w[keep keep keep], %w[delete delete keep]].each do |vm, instance, deployment|
        env = { 'BOSH_VM_NEXT_STATE' => vm, 'BOSH_INSTANCE_NEXT_STATE' => instance,
                'BOSH_DEPLOYMENT_NEXT_STATE' => deployment }
        expect(system(env, path)).to be(true)
        expect(File.read("#{root}/data/route-sync/next-state"))
          .to eq("vm=#{vm}\ninstance=#{instance}\ndeployment=#{deployment}\n")
      end
      expect(Dir.children("#{root}/data/route-sync")).to eq(['next-state'])
    end
  end

  it 'follows no link that the process may have put in its place' do
    Dir.mktmpdir('bosh-') do |root|
      path = script(root)
      FileUtils.mkdir_p("#{root}/data/route-sync")
      File.write("#{root}/precious", 'as it was')
      FileUtils.ln_s("#{root}/precious", "#{root}/data/route-sync/next-state")
      expect(system(path)).to be(true)
      expect(File.read("#{root}/precious")).to eq('as it was')
      expect(File.symlink?("#{root}/data/route-sync/next-state")).to be(false)
    end
  end

  it 'follows no link that the process was quick enough to put under the new name' do
    Dir.mktmpdir('bosh-') do |root|
      path = script(root)
      FileUtils.mkdir_p(["#{root}/data/route-sync", "#{root}/bin"])
      File.write("#{root}/precious", 'as it was')
      new = "#{root}/data/route-sync/.next-state.new"
      File.write("#{root}/bin/mktemp", "#!/bin/sh\nln -s #{root}/precious #{new}\necho #{new}\n")
      File.chmod(0o755, "#{root}/bin/mktemp")
      expect(system({ 'PATH' => "#{root}/bin:#{ENV.fetch('PATH')}" }, path, err: File::NULL)).to be(true)
      expect(File.read("#{root}/precious")).to eq('as it was')
    end
  end

  it 'never fails' do
    Dir.mktmpdir('bosh-') do |root|
      path = script(root)
      File.write("#{root}/data", 'no folder')
      expect(system(path, err: File::NULL)).to be(true)
    end
  end
end

describe 'bin/drain of kubernetes-api-route-registrar' do
  def job(properties = nil, **changed)
    RenderedJob.new('kubernetes-api-route-registrar', merged(ENOUGH['kubernetes-api-route-registrar'], properties || changed))
  end

  it 'takes the row out and waits for the routers, whatever the stop is for' do
    on_machine(job('drain_wait' => 1)) do |machine|
      machine.acts
      began = Process.clock_gettime(Process::CLOCK_MONOTONIC)
      expect(machine.run('drain').first(2)).to eq(["0\n", 0])
      expect(Process.clock_gettime(Process::CLOCK_MONOTONIC) - began).to be >= 1
      config = "#{machine.root}/jobs/kubernetes-api-route-registrar/config/route-sync.yml"
      expect(machine.calls('program')).to eq(["drain --unregister --config #{config}"])
      expect(machine.log).to include('words of program').and include('the row is gone')
    end
  end

  { 'refuses' => 'exit 1', 'hangs' => 'exec sleep 600' }.each do |what, answer|
    it "lets the stop go on, within its time, where the program #{what}" do
      on_machine(job('drain_wait' => 0, 'drain' => { 'timeout_seconds' => 1 })) do |machine|
        machine.acts
        machine.answers('program', answer)
        expect(machine.run('drain').first(2)).to eq(["0\n", 0])
        expect(machine.log).to include('not proven gone')
      end
    end
  end

  it 'does not wait for routers where there is nobody to withdraw anything' do
    on_machine(job('drain_wait' => 600, 'drain' => { 'timeout_seconds' => 1 })) do |machine|
      expect(machine.run('drain').first(2)).to eq(["0\n", 0])
      expect(machine.calls('program')).to be_empty
    end
  end
end

# BPM gives the folder of the logs to the process, and the agent calls the script as root.
%w[route-sync kubernetes-api-route-registrar].each do |name|
  describe "bin/drain of #{name}, where the process has its way with the log" do
    withdraws = name == 'route-sync' ? { 'drain' => { 'mode' => 'unregister' } } : { 'drain_wait' => 0 }
    let(:job) { RenderedJob.new(name, merged(ENOUGH[name], withdraws)) }

    def drained(machine)
      machine.acts
      result = machine.run('drain')
      expect(result.first(2)).to eq(["0\n", 0])
      expect(machine.calls('program').join).to start_with('drain --unregister')
      result.last
    end

    it 'adds to what is there' do
      on_machine(job) do |machine|
        File.write(machine.log_path, "the last stop\n")
        drained(machine)
        expect(machine.log).to start_with("the last stop\n").and include('words of program')
      end
    end

    it 'writes to no file that a link names' do
      on_machine(job) do |machine|
        File.write("#{machine.root}/precious", 'as it was')
        FileUtils.ln_s("#{machine.root}/precious", machine.log_path)
        # The words go to the agent instead.
        expect(drained(machine)).to include('words of program')
        expect(File.read("#{machine.root}/precious")).to eq('as it was')
      end
    end

    it 'makes no file that a link names' do
      on_machine(job) do |machine|
        FileUtils.ln_s("#{machine.root}/new", machine.log_path)
        drained(machine)
        expect(File.exist?("#{machine.root}/new")).to be(false)
      end
    end

    it 'waits for nobody to read a pipe' do
      on_machine(job) do |machine|
        File.mkfifo(machine.log_path)
        expect(drained(machine)).to include('words of program')
      end
    end

    it 'waits for nobody who has stopped to read a pipe' do
      on_machine(job) do |machine|
        File.mkfifo(machine.log_path)
        File.open(machine.log_path, File::RDWR | File::NONBLOCK) do |pipe|
          loop { pipe.write_nonblock('x' * 4096) }
        rescue IO::WaitWritable
          # What it had taken when the pipe refused it is lost.
          expect(drained(machine)).to include('drain.log')
        end
      end
    end
  end

  describe "bin/drain of #{name}, where an answer takes all the time there is" do
    it 'gives the program a second, and not for ever' do
      properties = { 'drain' => { 'timeout_seconds' => 3 } }
      properties['drain']['mode'] = 'unregister' if name == 'route-sync'
      properties['drain_wait'] = 0 unless name == 'route-sync'
      on_machine(RenderedJob.new(name, merged(ENOUGH[name], properties))) do |machine|
        machine.acts
        machine.answers('curl', 'sleep 4')
        machine.answers('program', 'exec sleep 30')
        # Within its second the program has to begin, which a busy machine may not let it.
        asked = 5.times.any? do
          expect(machine.run('drain').first(2)).to eq(["0\n", 0])
          machine.calls('program').any?
        end
        expect(asked).to be(true)
        expect(machine.calls('program').size).to eq(1)
      end
    end
  end

  describe "the scripts of #{name}, told numbers with a zero before them" do
    # Octal to bash, and no number at all where an 8 or a 9 follows.
    let(:job) do
      zeros = { 'post_start' => { 'timeout_seconds' => '058' }, 'drain' => { 'timeout_seconds' => '059' },
                'listen' => { 'port' => '09101' } }
      zeros['drain_wait'] = '00' unless name == 'route-sync'
      RenderedJob.new(name, merged(ENOUGH[name], zeros))
    end

    it 'read them as they are meant' do
      on_machine(job) do |machine|
        machine.acts
        machine.page('live', 503)
        later = Thread.new do
          sleep 0.1 until machine.calls('curl').size >= 2
          machine.acts
        end
        expect(machine.run('post-start').last(2)).to eq([0, ''])
        later.join
        machine.answers('program', '[ "$(wc -l <"$ROOT/program.calls")" -ge 2 ]') unless name == 'route-sync'
        expect(machine.run('drain').first(2)).to eq(["0\n", 0])
        expect(machine.calls('program').size).to eq(name == 'route-sync' ? 1 : 2)
        expect(machine.calls('curl')).to all(include(':9101/'))
      end
      expect(YAML.safe_load(job.render('config/prom_scraper_config.yml'))['port']).to eq(9101)
    end
  end

  describe "bin/post-start of #{name}" do
    it 'is content with a process that lives' do
      on_machine(RenderedJob.new(name, ENOUGH[name])) do |machine|
        machine.page('live', 200)
        machine.page('ready', 503)
        expect(machine.run('post-start')[1]).to eq(0)
        expect(machine.calls('curl').size).to eq(1)
      end
    end

    it 'waits until the page says so, where a deploy shall wait for it' do
      properties = merged(ENOUGH[name], 'post_start' => { 'wait_for_sync' => true })
      on_machine(RenderedJob.new(name, properties)) do |machine|
        machine.page('live', 200)
        machine.page('ready', 503, 'routing-api: not yet')
        later = Thread.new do
          sleep 0.1 until machine.calls('curl').size >= 2
          machine.page('ready', 200)
        end
        expect(machine.run('post-start')[1]).to eq(0)
        later.kill
        expect(machine.calls('curl').size).to be >= 2
        expect(machine.calls('curl')).to all(end_with('/ready'))
      end
    end

    it 'fails the deploy after its time, and says what is missing' do
      properties = merged(ENOUGH[name], 'post_start' => { 'wait_for_sync' => true, 'timeout_seconds' => 1 })
      on_machine(RenderedJob.new(name, properties)) do |machine|
        machine.page('ready', 503, 'routing-api: not yet')
        _, code, err = machine.run('post-start')
        expect(code).to eq(1)
        expect(err).to include('not ready after 1 s').and include('routing-api: not yet')
      end
    end

    it 'fails the deploy where nothing runs' do
      on_machine(RenderedJob.new(name, merged(ENOUGH[name], 'post_start' => { 'timeout_seconds' => 1 }))) do |machine|
        _, code, err = machine.run('post-start')
        expect([code, err]).to match([1, /not live after 1 s/])
      end
    end
  end
end

describe 'bin/dns/healthy of route-sync' do
  def healthy(machine) = machine.run('dns/healthy')[1].zero?

  def job(enabled)
    RenderedJob.new('route-sync', merged(ENOUGH['route-sync'], 'dns_health' => { 'enabled' => enabled }))
  end

  it 'never takes a Kubernetes master out of DNS' do
    on_machine(job(false)) { |machine| expect(healthy(machine)).to be(true) }
  end

  it 'says what /ready says, where it is asked to' do
    on_machine(job(true)) do |machine|
      expect(healthy(machine)).to be(false)
      machine.page('ready', 503, 'lane tcp: not confirmed')
      expect(healthy(machine)).to be(false)
      machine.page('ready', 200, 'lane tcp: confirmed')
      expect(healthy(machine)).to be(true)
    end
  end
end
