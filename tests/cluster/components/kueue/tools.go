//go:build tools

// Kueue's manager, built as published: `go build sigs.k8s.io/kueue/cmd/kueue` in this module.
package tools

import _ "sigs.k8s.io/kueue/cmd/kueue"
