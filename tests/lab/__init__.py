"""The lab: real Debian hosts on one machine, for the demo and the tests (docs/lab.md).

state     where everything the lab makes is kept, and how processes are recorded and ended
image     root file systems of hosts, built once per recipe
cache     a package cache in front of the machine's own mirrors
network   bridge, addresses and network namespaces of a slot
hosts     one host: boot, run, reset, break
faults    full disk, faked clock, an ACME server that says no
wan       a delayed link in front of a host
acme      an ACME server with names that resolve on the hosts
topology  inventories/lab.py read as a topology
lab       all of it for one slot: what the fixtures and ``python -m tests.lab`` use
provision pyinfra run in a subprocess, its result read back
"""
