"""The cluster port on one machine. See `cluster.py`."""

from dapt_operator.cluster.local.cluster import LocalCluster as LocalCluster
from dapt_operator.cluster.local.errors import LocalRunError as LocalRunError
