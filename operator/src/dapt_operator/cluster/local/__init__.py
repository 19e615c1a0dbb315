"""Implements the cluster port on one machine: Jobs are processes, volumes are folders. See `cluster.py`.

Has no queue, no scheduler but `capacity.py`, and no JobSets: every gang is a Job.
"""

from dapt_operator.cluster.local.cluster import LocalCluster as LocalCluster
from dapt_operator.cluster.local.errors import LocalRunError as LocalRunError
