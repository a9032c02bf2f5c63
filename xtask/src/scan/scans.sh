#!/usr/bin/env bash
# The scans that a tool makes, one function each. `cargo xtask scan` runs it in the repository's root with the pinned tool
# first on PATH. Its exit code is the verdict; 77 says that it could not be run. The report in SARIF goes to $REPORT.
# Trivy keeps its databases in $TRIVY_CACHE.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
root=$PWD
image=$root/target/image/muster-worker.tar

# Each workflow is what infra/expected/workflows says, so that no gate is missing, weakened or passed over. Only comments and
# the commits of actions may differ; that there is a commit is zizmor's to check.
workflow-gates() {
    mkdir "$scratch/workflows"
    local file failed=0
    shopt -s dotglob
    for file in .github/workflows/*; do
        sed -E '/^ *#/d; s/(uses: [^@ ]+)@.*/\1/' "$file" >"$scratch/workflows/${file##*/}"
    done
    diff --unified --recursive --ignore-blank-lines infra/expected/workflows "$scratch/workflows" || failed=$?
    report diff "$failed" .github/workflows "A workflow is not what infra/expected/workflows says"
}

# Hadolint. Comments make no exception, and neither may its configuration: none of its exceptions expires.
dockerfile() {
    if grep -E '^[^#]*(ignored|override|no-fail|threshold)' .hadolint.yaml; then
        report hadolint 1 .hadolint.yaml "Its exceptions do not expire"
    fi
    local hadolint=(hadolint --config .hadolint.yaml --failure-threshold style --disable-ignore-pragma infra/docker/Dockerfile)
    "${hadolint[@]}" --no-fail --format sarif >"$REPORT"
    "${hadolint[@]}"
}

# zizmor. Offline: its other audits need a token, and no scanner is given one.
workflows() {
    local zizmor=(zizmor --quiet --pedantic --offline --no-config --no-ignores --strict-collection .github)
    "${zizmor[@]}" --format sarif >"$REPORT"
    "${zizmor[@]}"
}

# actionlint, without the checkers of scripts that it would take from PATH: the verdict is the same on every machine.
workflow-syntax() {
    local actionlint=(actionlint -shellcheck= -pyflakes= -config-file /dev/null)
    "${actionlint[@]}" -format "$(<"$here/actionlint.sarif.tmpl")" >"$REPORT" || [[ $? -eq 1 ]]
    "${actionlint[@]}"
}

# Trivy, on the manifests as they would be applied, a file for each object so that an exception can name one.
manifests() {
    command -v kubectl >/dev/null || not_run "kubectl, which renders the manifests, is not on this machine"
    local kustomization rendered
    for kustomization in infra/k8s/overlays/* infra/k8s/monitoring infra/k8s/admission infra/k8s/admission/signatures; do
        rendered=$scratch/rendered/$(basename "$kustomization")
        mkdir -p "$rendered"
        kubectl kustomize "$kustomization" --output "$rendered"
    done
    # Without what Trivy would take for an exception, which does not expire.
    sed -E 's/(trivy|tfsec)://g' infra/docker/Dockerfile >"$scratch/rendered/Dockerfile"
    trivy_scan config --skip-check-update "$scratch/rendered"
}

repository-secrets() {
    trivy_scan fs --scanners secret --skip-dirs target --skip-dirs .git "$root"
}

repository-vulnerabilities() {
    trivy_vulnerabilities fs --skip-dirs target "$root"
}

image-secrets() {
    has_image
    trivy_scan image --scanners secret,misconfig --image-config-scanners misconfig,secret --skip-check-update --input "$image"
}

image-vulnerabilities() {
    has_image
    trivy_vulnerabilities image --pkg-types os,library --input "$image"
}

# Dive.
image-efficiency() {
    has_image
    local failed=0
    dive --source docker-archive --ci --ci-config .dive-ci "$image" || failed=$?
    report dive "$failed" infra/docker/Dockerfile "The layers waste more than .dive-ci allows"
}

# Lists what is inside the image, in CycloneDX, in the file $1.
sbom() {
    has_image
    trivy image --quiet --offline-scan --cache-dir "$TRIVY_CACHE" --format cyclonedx --output "$1" --input "$image"
}

trivy_vulnerabilities() {
    trivy image --quiet --cache-dir "$TRIVY_CACHE" --download-db-only ||
        not_run "the vulnerability database could not be fetched"
    trivy_scan "$1" --scanners vuln --skip-db-update --offline-scan --vex "$root/infra/vex/muster.openvex.json" "${@:2}"
}

trivy_scan() {
    trivy "$1" --quiet --skip-version-check --disable-telemetry --cache-dir "$TRIVY_CACHE" \
        --format json --output findings.json "${@:2}"
    gate "$scratch/findings.json"
}

# Reports what Trivy found, and fails unless it is excepted or a vulnerability without a fixed version. Those are shown: a
# gate that nobody can pass is soon switched off.
gate() {
    local severity=CRITICAL,HIGH,MEDIUM
    local convert=(trivy convert --quiet --severity "$severity" --ignorefile "$root/.trivyignore.yaml" --exit-code 1)
    local clean=0
    "${convert[@]}" --format sarif --output "$REPORT" "$1" || clean=$?
    "${convert[@]}" --table-mode detailed --ignore-policy "$here/unfixed.rego" "$1"
    if [[ $clean -ne 0 ]]; then
        echo "No fixed version yet, so it does not gate:"
        "${convert[@]}" --exit-code 0 --table-mode detailed "$1"
    fi
}

# In a neutral directory, where no configuration of Trivy changes what is looked for.
trivy() {
    (cd "$scratch" && command trivy "$@")
}

# Reports for the tool $1, which knows no SARIF, that it ended with $2; what is wrong with the file $3 then is $4.
report() {
    local result=
    if [[ $2 -ne 0 ]]; then
        result='{"ruleId": "'$1'", "level": "error", "message": {"text": "'$4': see the log"}, "locations": [
            {"physicalLocation": {"artifactLocation": {"uri": "'$3'"}, "region": {"startLine": 1}}}]}'
    fi
    echo '{"version": "2.1.0", "runs": [{"tool": {"driver": {"name": "'"$1"'"}}, "results": ['"$result"']}]}' >"$REPORT"
    return "$2"
}

has_image() {
    [[ -f $image ]] || not_run "${image#"$root/"} is missing: make it with \`cargo xtask image\`"
}

not_run() {
    echo "$1"
    exit 77
}

"$@"
