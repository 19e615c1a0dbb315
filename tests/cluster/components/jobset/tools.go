//go:build tools

// JobSet's manager, built as published: `go build sigs.k8s.io/jobset` in this module.
package tools

import _ "sigs.k8s.io/jobset"
