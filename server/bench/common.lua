-- What the scripts share: the result line that kudos reads. Times are in milliseconds.

function result(summary, latency, extra)
   local errors = summary.errors
   io.write(string.format(
      'RESULT {"requests": %d, "seconds": %.3f, "bytes": %d, "p50_ms": %.2f, "p99_ms": %.2f, "max_ms": %.2f, ' ..
      '"refused": %d, "broken": %d%s}\n',
      summary.requests, summary.duration / 1e6, summary.bytes,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3,
      errors.status, errors.connect + errors.read + errors.write + errors.timeout, extra or ""))
end
