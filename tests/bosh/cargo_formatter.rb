# frozen_string_literal: true

# Prints what failed, and one line in the form that `tests/run` counts.
class CargoFormatter
  RSpec::Core::Formatters.register self, :dump_summary, :dump_failures, :message

  def initialize(output)
    @output = output
  end

  def message(notification) = @output.puts(notification.message)

  def dump_failures(notification)
    @output.puts(notification.fully_formatted_failed_examples) unless notification.failed_examples.empty?
  end

  def dump_summary(summary)
    # What breaks outside of examples is one failure more.
    failed = summary.failure_count + summary.errors_outside_of_examples_count
    pending = summary.pending_count
    passed = summary.example_count - summary.failure_count - pending
    @output.puts "test result: #{failed.zero? ? 'ok' : 'FAILED'}. #{passed} passed; #{failed} failed; #{pending} ignored; " \
                 "0 measured; 0 filtered out; finished in #{summary.duration.round(2)}s"
  end
end
