"""The commands that work on a cluster, with the rights of the user whose kubeconfig it is, and nothing more.

They read and write DomainAdaptations, and read pods, their logs, Events and profiles. None of them writes a status.
"""
