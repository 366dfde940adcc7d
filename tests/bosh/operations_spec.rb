# frozen_string_literal: true

# The ops files, applied as bosh would apply them: to manifests in the shape of cf-deployment, kubo-deployment and
# prometheus-boshrelease, alone and in every combination that a document names.
#
# It owns what an ops file does to a manifest, and that README, example variables and ops files agree. What a job makes
# of its properties is the affair of the specs beside this one; here each combination's jobs are rendered and their
# configuration is read by the program, which shows that what is documented can be deployed.
require 'yaml'
require_relative 'go_patch'
require_relative 'deployable'

RSpec.describe 'operations' do
  extend Deployable
  include Deployable

  it 'has one row in the README for each file, and a file for each row' do
    expect(rows.keys.sort).to eq ops_files
  end

  ops_files.each do |name|
    describe name do
      it 'applies to the manifest it is for, after what it needs' do
        expect { manifest_after(name) }.not_to raise_error
      end

      unless rows.fetch(name).needs.empty?
        it 'fails without what it needs' do
          expect { GoPatch.apply(base_of(name), operations(name)) }.to raise_error(GoPatch::Mismatch)
        end
      end

      it 'fails on a manifest that it does not fit' do
        others = bases.reject { |folder,| name.start_with?("#{folder}/") }.values
        [{}, { 'instance_groups' => [], 'releases' => [], 'addons' => [] }, *others].each do |other|
          expect { GoPatch.apply(other, operations(name)) }.to raise_error(GoPatch::Mismatch)
        end
      end

      it 'fails where the real bosh does' do
        bosh = bosh_for('an ops file fails on a manifest that it does not fit')
        text = File.read(File.join(Deployable::OPERATIONS, name))
        _, errors, good = bosh_int(bosh, { 'instance_groups' => [], 'releases' => [], 'addons' => [] }, [text])
        expect(good).to be(false)
        expect(errors).to match(/Expected to find/)
      end

      # What is gone cannot be taken away again; every other file may stand in a command twice.
      if operations(name).any? { |operation| operation['type'] == 'remove' }
        it 'says so when it is applied a second time' do
          once = manifest_after(name)
          expect { GoPatch.apply(once, operations(name)) }.to raise_error(GoPatch::Mismatch)
        end
      else
        it 'changes nothing when it is applied a second time' do
          once = manifest_after(name)
          expect(repeated(GoPatch.apply(once, operations(name)))).to eq repeated(once)
        end
      end

      it 'asks for the variables that the README and its example name, and for no others' do
        asked = asked_of_operator(name)
        expect(rows.fetch(name).variables.sort).to eq asked
        example = example_variables(name)
        expect(example.keys.sort).to eq asked
        expect(example.values).to all(satisfy { |value| !value.nil? })
      end

      it 'is optional only where it adds' do
        operations(name).each do |operation|
          steps = GoPatch.steps(operation['path'])
          optional = steps.index { |step| GoPatch.optional?(step) }
          next if optional.nil?

          expect(operation['type']).to eq 'replace'
          # Everything before the mark is there, and what bears it is not.
          reached = steps[0...optional].reduce(manifest_before(name)) { |node, step| GoPatch.find_step(node, step) }
          expect([operation['path'], GoPatch.place(reached, steps[optional])]).to eq [operation['path'], nil]
        end
      end
    end
  end

  it 'has an example of variables for each file that asks for some, and no other' do
    with = ops_files.reject { |name| rows.fetch(name).variables.empty? }
    expect(example_files).to eq with.map { |name| "vars-#{File.basename(name)}" }.uniq.sort
  end

  it 'gives one variable one meaning in all examples' do
    meanings = Hash.new { |hash, key| hash[key] = [] }
    ops_files.each { |name| example_variables(name).each { |key, value| meanings[key] |= [value] } }
    expect(meanings.select { |_, values| values.size > 1 }).to eq({})
  end

  it 'has an example of just the variables that the manifest of its own asks for' do
    manifest = YAML.load_file(File.join(Deployable::RELEASE, 'manifests/standalone.yml'))
    expect(example_variables('standalone.yml').keys.sort).to eq GoPatch.variables(manifest).sort
  end

  it 'puts the same job on VMs of its own as on the masters' do
    master = job('cfcr/add-route-sync.yml', 'master', 'route-sync')
    expect(job('cfcr/dedicated-instance-group.yml', 'route-sync', 'route-sync')).to eq master
  end

  it 'gives the rights of examples/rbac.yml to the user of the certificate' do
    manifest = manifest_after('cfcr/add-route-sync.yml')
    roles = GoPatch.find(manifest, '/instance_groups/name=master/jobs/name=kubernetes-roles/properties')
    specs = roles.fetch('post-start-custom-specs').to_h { |spec| [spec['name'], spec['value']] }
    given = YAML.load_stream(specs.fetch('route-sync'))
    example = YAML.load_stream(File.read(File.join(Deployable::ROOT, 'examples/rbac.yml')))
    rules = ->(objects) { objects.filter_map { |object| object.values_at('kind', 'rules') if object['rules'] } }
    expect(rules[given]).to eq rules[example]
    name = GoPatch.find(manifest, '/variables/name=tls-route-sync/options/common_name')
    users = given.flat_map { |object| object.fetch('subjects', []) }
    expect(users).to all(include('kind' => 'User', 'name' => name))
  end

  it 'takes the jobs of kubo over in place' do
    old = GoPatch.apply(bases['cfcr'], YAML.load_file(File.join(Deployable::FIXTURES, 'kubo-0.22.yml')))
    new = %w[cfcr/add-route-sync.yml cfcr/add-kubernetes-api-route-registrar.yml cfcr/dedicated-instance-group.yml]
          .reduce(old) { |manifest, name| GoPatch.apply(manifest, operations(name)) }
    jobs = new['instance_groups'].flat_map do |group|
      group['jobs'].map { |job| [group['name'], *job.values_at('name', 'release')] }
    end
    jobs.select! { |_, name,| %w[route-sync kubernetes-api-route-registrar].include?(name) }
    expect(jobs).to eq [%w[master kubernetes-api-route-registrar cf-route-sync],
                        %w[route-sync route-sync cf-route-sync]]
  end

  it 'goes back to the token of kubo up to 0.22, and only there' do
    token = operations('cfcr/legacy-token-auth.yml')
    after = manifest_after('cfcr/add-route-sync.yml')
    expect { GoPatch.apply(after, token) }.to raise_error(GoPatch::Mismatch, /route-sync-password/)
    properties = job('cfcr/legacy-token-auth.yml', 'master', 'route-sync')['properties']
    expect(properties).to include('api-token' => '((route-sync-password))')
    expect(properties).not_to have_key('kubernetes')
  end

  it 'refuses to lose what was changed on the masters before the job leaves them' do
    %w[cfcr/legacy-token-auth.yml cfcr/use-nats-without-link.yml cfcr/use-internal-endpoints.yml
       cfcr/remove-route-sync.yml].each do |name|
      expect { GoPatch.apply(manifest_after(name), operations('cfcr/dedicated-instance-group.yml')) }
        .to raise_error(GoPatch::Mismatch), name
    end
  end

  describe 'between the masters and VMs of its own' do
    both = 'cfcr/both-instance-groups.yml'
    path = '/instance_groups/name=route-sync'
    drain = lambda do |manifest, group|
      resolved = resolve(manifest)
      GoPatch.find(resolved, "/instance_groups/name=#{group}")['instances'] = 1
      job = our_jobs(resolved).find { |found| found.name == 'route-sync' && found.group['name'] == group }
      rendered(job).files.fetch('bin/drain')
    end

    it 'runs the same job on both' do
      expect(job(both, 'route-sync', 'route-sync')).to eq job(both, 'master', 'route-sync')
    end

    it 'keeps the VMs that stay as they are in the second deploy' do
      group = GoPatch.find(manifest_after(both), path)
      GoPatch.find(group, '/jobs/name=route-sync/consumes').delete('peers')
      expect(group).to eq GoPatch.find(manifest_after('cfcr/dedicated-instance-group.yml'), path)
    end

    it 'gives the link that both groups offer to neither, which a director would refuse to choose' do
      manifest = manifest_after(both)
      expect(ambiguous(manifest)).to eq []
      %w[master route-sync].each do |group|
        GoPatch.find(manifest, "/instance_groups/name=#{group}/jobs/name=route-sync/consumes").delete('peers')
      end
      expect(ambiguous(manifest)).to eq [%w[master peers], %w[route-sync peers]]
    end

    it 'takes no instance for the only one, even where its group has no other' do
      %w[master route-sync].each do |group|
        expect(instance_exec(manifest_after(both), group, &drain)).to include('only_instance=false')
      end
      alone = instance_exec(manifest_after('cfcr/dedicated-instance-group.yml'), 'route-sync', &drain)
      expect(alone).to include('only_instance=true')
    end

    it 'refuses the token, and withdrawals at each stop' do
      %w[cfcr/legacy-token-auth.yml cfcr/remove-route-sync.yml].each do |name|
        expect { GoPatch.apply(manifest_after(name), operations(both)) }.to raise_error(GoPatch::Mismatch), name
      end
    end

    %w[cfcr/use-nats-without-link.yml cfcr/use-internal-endpoints.yml cfcr/expose-metrics.yml
       cfcr/scrape-over-tls.yml].each do |name|
      it "takes #{name} as it is and moved, and runs the same job on both" do
        uses = [Deployable::Use.new(name, false), Deployable::Use.new(name, true)]
        manifest = uses.reduce(manifest_after(both)) do |before, use|
          GoPatch.apply(before, YAML.safe_load(text_of(use)))
        end
        jobs = %w[master route-sync].map do |group|
          GoPatch.find(manifest, "/instance_groups/name=#{group}/jobs/name=route-sync")
        end
        expect(jobs.first).to eq jobs.last
        expect(jobs.first).not_to eq job(both, 'master', 'route-sync')
        expect(ambiguous(manifest)).to eq []
      end
    end
  end

  combinations.each do |combination|
    describe combination.title do
      it 'applies' do
        expect { manifest_of(combination) }.not_to raise_error
      end

      it 'sets only what the jobs declare' do
        our_jobs(manifest_of(combination)).each { |job| undeclared(job).tap { |found| expect(found).to eq [] } }
      end

      it 'leaves no link to the director that is offered twice' do
        expect(ambiguous(manifest_of(combination))).to eq []
      end

      it 'renders jobs whose configuration the program takes' do
        jobs = our_jobs(resolved(combination))
        # Of this errand's file the program reads one group alone, with a command of its own: errands_spec.rb.
        errands, jobs = jobs.partition { |job| job.name == 'register-uaa-client' }
        jobs.each { |job| deployed(rendered(job)) }
        errands.each { |job| expect(rendered(job).files).to include('config/route-sync.yml') }
      end

      it 'is what the real bosh makes of it' do
        bosh = bosh_for('the ops files make of a manifest what `bosh int` makes of it')
        expect(YAML.safe_load(interpolated_by(bosh, combination), aliases: true)).to eq interpolated(combination)
      end
    end
  end
end
