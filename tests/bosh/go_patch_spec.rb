# frozen_string_literal: true

# What a path means, case by case; the real bosh has the last word where it is at hand.
require 'yaml'
require_relative 'deployable'

RSpec.describe GoPatch do
  include Deployable

  document = { 'a' => { 'b' => 1 }, 'list' => [{ 'name' => 'x', 'v' => 1 }, { 'name' => 'y' }], 'n' => [1, 2, 3] }
  replace = ->(path, value = 9) { { 'type' => 'replace', 'path' => path, 'value' => value } }
  remove = ->(path) { { 'type' => 'remove', 'path' => path } }
  test = ->(path, **rest) { { 'type' => 'test', 'path' => path }.merge(rest.transform_keys(&:to_s)) }
  same = ->(changes) { document.merge(changes) }

  {
    'a key is replaced' => [replace['/a/b'], same['a' => { 'b' => 9 }]],
    'a key that may be missing is added' => [replace['/a/c?'], same['a' => { 'b' => 1, 'c' => 9 }]],
    'all that follows a mark may be missing' => [replace['/c?/d/e'], same['c' => { 'd' => { 'e' => 9 } }]],
    'a missing list is made for its first item' => [replace['/c?/-'], same['c' => [9]]],
    'a missing list is made for a named item' => [replace['/c?/name=z', { 'name' => 'z' }],
                                                  same['c' => [{ 'name' => 'z' }]]],
    'an item is added at the end' => [replace['/n/-'], same['n' => [1, 2, 3, 9]]],
    'an item is replaced by its index' => [replace['/n/0'], same['n' => [9, 2, 3]]],
    'an item is replaced by its index from the end' => [replace['/n/-1'], same['n' => [1, 2, 9]]],
    'an item is replaced by its name' => [replace['/list/name=x/v'],
                                          same['list' => [{ 'name' => 'x', 'v' => 9 }, { 'name' => 'y' }]]],
    'a named item that may be missing is added' => [replace['/list/name=z?/v'],
                                                    same['list' => document['list'] + [{ 'name' => 'z', 'v' => 9 }]]],
    'a key is removed' => [remove['/a/b'], same['a' => {}]],
    'an item is removed' => [remove['/list/name=x'], same['list' => [{ 'name' => 'y' }]]],
    'what may be missing need not be removed' => [remove['/c?/d'], document],
    'a value is as expected' => [test['/a/b', value: 1], document],
    'a key is absent' => [test['/a/c', absent: true], document],
    'a slash in a key is escaped' => [replace['/a/c~1d?'], same['a' => { 'b' => 1, 'c/d' => 9 }]],
    'a key that is missing' => [replace['/c'], nil],
    'a step on the way that is missing' => [replace['/c/d'], nil],
    'a named item that is missing' => [replace['/list/name=z/v'], nil],
    'an index that is missing' => [replace['/n/3'], nil],
    'a key of a list' => [replace['/n/a'], nil],
    'an index of a map' => [replace['/a/0'], nil],
    'the removal of what is missing' => [remove['/c'], nil],
    'another value than expected' => [test['/a/b', value: 2], nil],
    'a key that should be absent' => [test['/a/b', absent: true], nil],
    'a path astray before the key that should be absent' => [test['/c/d', absent: true], nil],
  }.each do |title, (operation, wanted)|
    it "#{wanted.nil? ? 'refuses: ' : ''}#{title}" do
      result = begin
        GoPatch.apply(document, [operation])
      rescue GoPatch::Mismatch
        nil
      end
      expect(result).to eq wanted
    end

    it "is what the real bosh makes of it: #{title}" do
      bosh = bosh_for('what a path of an ops file means')
      output, _, good = bosh_int(bosh, document, [YAML.dump([operation])])
      expect(good ? YAML.safe_load(output) : nil).to eq wanted
    end
  end

  it 'leaves the manifest that it was given as it was' do
    before = Marshal.load(Marshal.dump(document))
    GoPatch.apply(document, [replace['/a/b'], remove['/list/name=x']])
    expect(document).to eq before
  end

  it 'refuses two items of one name' do
    twice = { 'list' => [{ 'name' => 'x' }, { 'name' => 'x' }] }
    expect { GoPatch.apply(twice, [remove['/list/name=x']]) }.to raise_error(GoPatch::Mismatch)
  end

  variables = { 'a' => [1, 2], 'b' => 'x', 'c' => { 'd' => 7 }, 'e' => '((/other/e.ca))' }
  given = { 'whole' => '((a))', 'inside' => 'to ((b)) and ((c.d))', 'unknown' => '((f)) ((b))', 'other' => '((e))' }
  put_in = { 'whole' => [1, 2], 'inside' => 'to x and 7', 'unknown' => '((f)) x', 'other' => '((/other/e.ca))' }

  it 'puts variables in whole, inside a text, and by their parts, and leaves those that it does not know' do
    expect(GoPatch.interpolate(given, variables)).to eq put_in
  end

  it 'puts variables in as the real bosh does' do
    output, = bosh_int(bosh_for('what a variable of a manifest becomes'), given, [], variables)
    expect(YAML.safe_load(output)).to eq put_in
  end
end
