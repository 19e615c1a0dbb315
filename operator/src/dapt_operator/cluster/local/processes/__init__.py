"""Runs Jobs as processes of this machine, and reports about them as the Job controller and the kubelet do."""
