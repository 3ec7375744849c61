"""Speed against Ansible and against the floor, as ratios (docs/speed.md).

figures     what is measured, in which order, and what the samples say: pure
contenders  Hostwright, Ansible and the floor, each as a command on the same lab hosts
fleet       the lab hosts of a benchmark, their delayed links and resets
endstate    what a host has become: equal for both tools, and what the floor checks
trace       a program: one pyinfra run in which every SSH command is counted and timed
profile     where the time of such a run went, by operation
report      table, JSON and plot
"""
