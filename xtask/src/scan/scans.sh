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

# What decides over a change is what infra/expected/repository says, so that no gate is missing, weakened or passed over. Only
# comments may differ, and the exceptions of deny.toml, which have a check of their own. Each package keeps the lints of the workspace,
# and has no clippy.toml of its own. Each kustomization is in infra/expected/overlays.yaml, and what CODEOWNERS names is there.
gates() {
    local file failed=0
    mkdir -p "$scratch/repository"
    awk '/^\[/ { inside = /^\[workspace\.lints/ } inside && !/^ *#/' Cargo.toml >"$scratch/repository/lints.toml"
    find .cargo .ci .dive-ci .github .hadolint.yaml clippy.toml deny.toml rust-toolchain.toml rustfmt.toml infra/nats/*.conf \
        xtask/src/ci/steps -type f |
        while read -r file; do
            mkdir -p "$scratch/repository/$(dirname "$file")"
            sed -E '/^ *#([^!]|$)/d; /^ *\{ id = /d' "$file" >"$scratch/repository/$file"
        done || failed=1
    diff --unified --recursive --ignore-blank-lines infra/expected/repository "$scratch/repository" || failed=1
    # Rustup prefers the one to rust-toolchain.toml, and cargo-deny adds the others to deny.toml.
    for file in rust-toolchain deny.exceptions.toml .deny.exceptions.toml .cargo/deny.exceptions.toml; do
        if [[ -e $file ]]; then
            echo "$file decides beside the files that are compared"
            failed=1
        fi
    done
    find . \( -name target -o -path ./infra/expected -o -path ./crates/messaging/fuzz \) -prune -o -mindepth 2 -name Cargo.toml -print >"$scratch/packages"
    for file in $(<"$scratch/packages"); do
        if ! grep --after-context 1 '^\[lints\]$' "$file" | grep --quiet '^workspace = true$'; then
            echo "$file does not keep the lints of the workspace"
            failed=1
        fi
    done
    while read -r file; do
        echo "$file shadows clippy.toml or rustfmt.toml"
        failed=1
    done < <(find . \( -name target -o -path ./infra/expected \) -prune -o -mindepth 2 \
        \( -name '*clippy.toml' -o -name '*rustfmt.toml' \) -print; find . -maxdepth 1 \( -name .clippy.toml -o -name .rustfmt.toml \))
    while read -r file; do
        file=$(dirname "$file")
        if [[ $file != */base ]] && ! grep -q "/${file##*/}:" infra/expected/overlays.yaml; then
            echo "$file is not in infra/expected/overlays.yaml"
            failed=1
        fi
    done < <(find infra/k8s -iname 'kustomization*')
    while read -r file _; do
        if [[ $file = /* && ! -e .$file ]]; then
            echo "$file of CODEOWNERS is not there"
            failed=1
        fi
    done < <(cat .github/CODEOWNERS)
    report diff "$failed" infra/expected "A gate is not what infra/expected says"
}

# cargo-deny, on what may be depended on.
dependencies() {
    local failed=0
    cargo-deny check bans licenses sources || failed=$?
    report cargo-deny "$failed" deny.toml "A dependency is not what deny.toml allows"
}

# cargo-deny, against the RustSec database: as it is now, or else the newest snapshot at hand, whose date is shown.
# $MUSTER_ADVISORY_DB names a clone of it, for a machine that does not reach it.
advisories() {
    local database=https://github.com/RustSec/advisory-db failed=0 git date
    if [[ -n ${MUSTER_ADVISORY_DB-} ]]; then
        export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=url.$MUSTER_ADVISORY_DB.insteadOf GIT_CONFIG_VALUE_0=$database
    fi
    # An old database is not enough where the verdict counts.
    cargo-deny fetch db || [[ ${GITHUB_ACTIONS-} != true ]] || failed=1
    for git in "${CARGO_HOME:-$HOME/.cargo}"/advisory-dbs/*/.git; do
        date=$(git --git-dir "$git" log -1 --format=%cd --date=short 2>/dev/null) ||
            not_run "there is no RustSec database: name a clone of $database in MUSTER_ADVISORY_DB"
    done
    echo "the RustSec database is of $date"
    cargo-deny check --disable-fetch advisories || failed=$?
    report cargo-deny "$failed" deny.toml "A dependency has an advisory, or the database could not be fetched"
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
    trivy_scan fs --scanners secret --secret-config "$here/secrets.yaml" --skip-dirs target --skip-dirs .git "$root"
}

repository-vulnerabilities() {
    trivy_vulnerabilities fs --skip-dirs target "$root"
}

image-secrets() {
    has_image
    trivy_scan image --scanners secret,misconfig --secret-config "$here/secrets.yaml" --image-config-scanners misconfig,secret --skip-check-update --input "$image"
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
