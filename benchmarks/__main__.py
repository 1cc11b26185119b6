"""`python -m benchmarks`, which `make bench` runs: everything that is measured side by side with etcd. With arguments,
which are those of `compare_etcd`, that alone."""

import sys

from benchmarks import compare_etcd, keep_alives, watch

compare_etcd.main()
if len(sys.argv) == 1:
    watch.main([])
    keep_alives.main([])
