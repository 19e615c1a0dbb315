//go:build tools

// Helm itself, built as published: `go build helm.sh/helm/v3/cmd/helm` in this module.
package tools

import _ "helm.sh/helm/v3/cmd/helm"
