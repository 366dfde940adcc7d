# frozen_string_literal: true

# The release's own pages: what they point to is there, what they name is declared, and the tables of properties are
# those of jobs/*/spec. It owns no page and no word of one.
require 'open3'
require 'yaml'
require_relative 'spec_helper'

RSpec.describe 'pages' do
  root = File.expand_path('../..', __dir__)
  pages = Dir.glob(%w[bosh-release/**/*.md README.md], base: root).sort
  read = ->(page) { File.read(File.join(root, page)) }
  # What a heading is called in a link: as the forges make it.
  anchors = lambda do |text|
    text.gsub(/^ *```.*?^ *```/m, '').scan(/^#+ (.+)$/).flatten.map do |heading|
      heading.gsub(/`|\[|\]\([^)]*\)/, '').downcase.gsub(/[^\p{Word}\- ]/, '').tr(' ', '-')
    end
  end
  specs = JOBS.to_h { |job| [job, job_spec(job)] }
  reference = read['docs/reference.md']
  findings = reference[/<!-- table: findings -->(.*?)<!-- end -->/m, 1].scan(/^\| `([\w-]+)`/).flatten
  keys = reference[/<!-- table: config -->(.*?)<!-- end -->/m, 1].scan(/^\| `([^`]+)`/).flatten

  pages.each do |page|
    it "of #{page} lead to what is there" do
      text = read[page].gsub(/^ *```.*?^ *```/m, '')
      text.scan(/\]\(([^)\s]+)\)/).flatten.reject { |target| target.start_with?('http') }.each do |target|
        path, anchor = target.split('#', 2)
        path = path.empty? ? page : File.join(File.dirname(page), path)
        file = File.expand_path(path, root)
        expect(File.exist?(file)).to be(true), "#{target} is not there"
        next if anchor.nil?

        expect(anchors[File.read(file)]).to include(anchor)
      end
    end
  end

  it 'have the properties of the jobs as the specs declare them' do
    _, errors, status = Open3.capture3(File.join(root, 'bosh-release/scripts/job-reference'), '--check')
    expect([status.success?, errors]).to eq [true, '']
  end

  it 'have a table for each job, and for no other' do
    named = read['bosh-release/docs/02-bosh-jobs.md'].scan(/^<!-- table: properties (\S+) -->/).flatten
    expect(named.sort).to eq specs.keys.sort
  end

  it 'name properties that are declared' do
    declared = specs.values.flat_map { |spec| spec.fetch('properties', {}).keys }
    groups = declared.filter_map { |name| name[/\A[\w-]+(?=\.)/] }.uniq
    # A group may be named as well.
    known = declared.flat_map { |name| name.split('.').each_index.map { |at| name.split('.')[0..at].join('.') } }
    pages.grep(%r{\Abosh-release/(docs|operations)/}).each do |page|
      # Without the tables: they are the specs' own words.
      text = read[page].gsub(/^ *```.*?^ *```|<!-- table: .*?<!-- end -->/m, '')
      named = text.scan(/`((?:#{groups.join('|')})\.[\w.]+)(?::[^`]*)?`/).flatten
      named.reject! { |name| name.match?(/\.(yml|rb|sh|md|internal|cf)\b/) }
      # Of a property that is a map a part may be named.
      named.reject! { |name| declared.any? { |property| name.start_with?("#{property}.") } }
      expect([page, named.uniq - known - keys]).to eq [page, []]
    end
  end

  it 'tell to type words that the program knows' do
    call = %r{(?:\brs|bin/route-sync|`route-sync) ([a-z][a-z-]+)(?: (--[a-z-]+))?}
    typed = pages.flat_map { |page| read[page].scan(call) }.uniq
    expect(typed).to include(['status', nil], ['drain', '--unregister'])
    typed.each do |word, flag|
      help, status = Open3.capture2e(PROGRAM, word, '--help')
      expect([word, status.success?]).to eq [word, true]
      expect(help).to include(flag) if flag
    end
  end

  it 'name findings that there are' do
    rows = read['bosh-release/docs/05-runbook.md'].scan(/^\| `([\w-]+)` \|/).flatten
    expect(rows).not_to be_empty
    expect(rows - findings).to eq []
  end
end
