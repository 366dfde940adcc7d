# frozen_string_literal: true

# Reads the part of PromQL that the alerts are written in: enough to refuse what Prometheus would refuse, and to say
# which metrics, labels and groups an expression names. It owns their grammar; it computes nothing.
require 'strscan'

module Promql
  class Malformed < StandardError; end

  Selector = Struct.new(:metric, :matchers)
  Matcher = Struct.new(:operator, :value)

  # Labels that a scrape adds, whatever is scraped; `deployment` by scrape-route-sync.yml.
  TARGET = %w[job instance deployment].freeze
  # name → kinds of its arguments; `range` is what `[5m]` makes.
  FUNCTIONS = { 'rate' => %i[range], 'increase' => %i[range], 'resets' => %i[range], 'changes' => %i[range],
                'histogram_quantile' => %i[scalar instant], 'absent' => %i[instant] }.freeze
  AGGREGATES = %w[sum min max avg count].freeze
  COMPARISONS = /==|!=|>=|<=|>|</

  # A series' name without what a histogram adds.
  def self.family(metric)
    metric.sub(/_(bucket|sum|count)\z/, '')
  end

  def self.parse(text)
    Expression.new(text)
  end

  # One expression, read from left to right.
  class Expression
    attr_reader :selectors

    # The labels that are left, where an aggregate decides; nil where the series keep theirs.
    attr_reader :grouping

    def initialize(text)
      @scanner = StringScanner.new(text)
      @selectors = []
      @grouping = nil
      kind = expression
      malformed('the end') unless space && @scanner.eos?
      malformed('a value, not a range,') if kind == :range
    end

    private

    def space
      @scanner.skip(/\s*/)
      true
    end

    def take(pattern)
      space && @scanner.scan(pattern)
    end

    def need(pattern, what)
      take(pattern) || malformed(what)
    end

    def malformed(what)
      raise Malformed, "expected #{what} at `#{@scanner.rest}`"
    end

    # comparisons and set operations, which bind weaker than arithmetic
    def expression
      kind = arithmetic
      loop do
        if take(COMPARISONS)
          take(/bool\b/)
        elsif take(/(and|or|unless)\b/)
          take(/(on|ignoring)\b/) && labels
        else
          return kind
        end
        malformed('a value, not a range,') if kind == :range
        kind = [kind, arithmetic].include?(:instant) ? :instant : :scalar
      end
    end

    def arithmetic
      kind = operand
      while take(%r{[-+*/]})
        malformed('a value, not a range,') if kind == :range
        kind = [kind, operand].include?(:instant) ? :instant : :scalar
      end
      kind
    end

    def operand
      return :scalar if take(/\d+(\.\d+)?\b/)

      if take(/\(/)
        kind = expression
        need(/\)/, '`)`')
        return kind
      end
      name = need(/[a-zA-Z_][\w:]*/, 'an expression')
      return aggregate if AGGREGATES.include?(name)
      return call(name) if @scanner.check(/\s*\(/)

      selector(name)
    end

    def aggregate
      by = take(/by\b/) ? labels : nil
      need(/\(/, '`(`')
      malformed('an instant vector') unless expression == :instant
      need(/\)/, '`)`')
      # Whatever an inner one left, the outer one decides.
      @grouping = by || (take(/by\b/) ? labels : [])
      :instant
    end

    def call(name)
      kinds = FUNCTIONS.fetch(name) { malformed("a function, not `#{name}`,") }
      need(/\(/, '`(`')
      kinds.each_with_index do |wanted, at|
        need(/,/, '`,`') unless at.zero?
        malformed("an argument of kind #{wanted}") unless expression == wanted
      end
      need(/\)/, '`)`')
      :instant
    end

    def selector(name)
      matchers = {}
      if take(/\{/)
        until take(/\}/)
          label = need(/[a-zA-Z_]\w*/, 'a label')
          operator = need(/=~|!~|!=|=/, 'a matcher')
          value = need(/"[^"]*"/, 'a quoted value')[1..-2]
          Regexp.new(value) if operator.include?('~')
          matchers[label] = Matcher.new(operator, value)
          take(/,/) || @scanner.check(/\s*\}/) || malformed('`,` or `}`')
        end
      end
      @selectors << Selector.new(name, matchers)
      take(/\[\d+[smh]\]/) ? :range : :instant
    end

    def labels
      need(/\(/, '`(`')
      names = [need(/\w+/, 'a label')]
      names << need(/\w+/, 'a label') while take(/,/)
      need(/\)/, '`)`')
      names
    end
  end
end
