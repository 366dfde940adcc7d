# frozen_string_literal: true

# The alerts: what they name exists, what they say can be looked up. It owns that rules, reference and runbook agree;
# whether a threshold is wise it cannot know.
require 'yaml'
require_relative 'promql'

RSpec.describe 'alerts' do
  root = File.expand_path('../..', __dir__)
  release = File.join(root, 'bosh-release')
  groups = YAML.load_file(File.join(release, 'prometheus/route-sync.rules.yml'))['groups']
  alerts = groups.flat_map { |group| group['rules'] }
  reference = File.read(File.join(root, 'docs/reference.md'))
  table = lambda do |name|
    reference[/<!-- table: #{name} -->\n(.*?)<!-- end -->/m, 1].lines.drop(2).to_h do |line|
      cells = line.split(/(?<!\\)\|/).map(&:strip)
      [cells[1].delete('`'), cells]
    end
  end
  metrics = table['metrics']
  findings = table['findings']

  it 'are the same for prometheus-boshrelease' do
    operations = YAML.load_file(File.join(release, 'operations/prometheus/alerts.yml'))
    expect(operations.map { |operation| operation['value'] }).to eq groups
  end

  it 'have names of their own' do
    names = alerts.map { |alert| alert['alert'] }
    expect(names.uniq).to eq names
  end

  it 'have one section each in the runbook, and the runbook has no other' do
    sections = File.readlines(File.join(release, 'docs/05-runbook.md')).grep(/^## (RouteSync|Kubernetes)/)
    sections = sections.map { |line| line.delete_prefix('## ').strip }
    expect(sections).to eq(alerts.map { |alert| alert['alert'] })
  end

  alerts.each do |alert|
    describe alert['alert'] do
      expression = Promql.parse(alert['expr'])

      it 'is written as Prometheus takes rules' do
        expect(alert.keys - %w[alert expr for labels annotations]).to eq []
        expect(alert.fetch('for', '0s')).to match(/\A\d+[smh]\z/)
        expect(alert['labels']).to include('service' => 'route-sync', 'severity' => /\A(critical|warning|info)\z/)
        expect(alert['annotations'].keys).to eq %w[summary description]
        # bosh would take double brackets for a variable.
        expect(alert.to_s).not_to match(/\(\([-\w.]+\)\)/)
      end

      it 'asks for metrics and labels that there are' do
        expect(expression.selectors).not_to be_empty
        expression.selectors.each do |selector|
          next expect(selector.matchers.keys - Promql::TARGET).to(eq([])) if selector.metric == 'up'

          cells = metrics.fetch(Promql.family(selector.metric)) { raise "no metric `#{selector.metric}`" }
          labels = cells[3].scan(/`(\w+)`/).flatten + Promql::TARGET
          labels << 'le' if selector.metric.end_with?('_bucket')
          expect(selector.matchers.keys - labels).to eq []
          expect(selector.metric.end_with?('_total')).to be(cells[2] == 'counter')
          expect(selector.metric.match?(/_(bucket|sum|count)\z/)).to be(cells[2] == 'histogram')
        end
      end

      it 'matches findings that there are' do
        expression.selectors.each do |selector|
          code = selector.matchers['code'] or next
          code.value.split('|').each do |alternative|
            found = findings.keys.grep(/\A(?:#{alternative})\z/)
            raise "no finding `#{alternative}`" if found.empty?

            severity = selector.matchers['severity']
            severities = found.map { |name| findings[name][2] }
            expect(severities).to include(severity.value) if severity
          end
        end
      end

      it 'tells only labels that its result has' do
        told = alert['annotations'].values.join.scan(/\$labels\.(\w+)/).flatten.uniq
        grouped = expression.grouping
        if grouped
          expect(told - grouped).to eq []
        else
          metric = expression.selectors.first.metric
          own = metric == 'up' ? [] : metrics[Promql.family(metric)][3].scan(/`(\w+)`/).flatten
          expect(told - own - Promql::TARGET).to eq []
        end
      end
    end
  end

  it 'are refused where they are malformed' do
    ['sum by (a (b)', 'a{b="c}', 'a > ', 'sum(a) by', 'nosuch(a)', 'a b', 'rate(a)', 'a[5m] > 1'].each do |bad|
      expect { Promql.parse(bad) }.to raise_error(Promql::Malformed), bad
    end
  end
end
