// The first process of every pod's sandbox.
module dapt.dev/testcluster/pause

go 1.26.0
