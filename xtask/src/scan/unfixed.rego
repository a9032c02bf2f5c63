# Used for the gate only: a vulnerability without a fixed version is shown and reported, and does not fail the scan.
package trivy

import rego.v1

ignore if {
	input.VulnerabilityID
	object.get(input, "FixedVersion", "") == ""
}
