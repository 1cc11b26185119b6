"""`python -m benchmarks`, which `make bench` runs: the comparison with etcd. Arguments are those of `compare_etcd`."""

from benchmarks.compare_etcd import main

main()
