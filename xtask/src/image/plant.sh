# Makes images for tests; sourced by them. `image CONFIGURATION LAYER...` writes ./target/image/muster-worker.tar in docker's
# form, with a layer from each directory. $config and the directory `right` are those of an image as it must be.
set -euo pipefail

config='{"User": "65532:65532", "Entrypoint": ["/muster-worker"],
    "Healthcheck": {"Test": ["CMD", "/muster-worker", "health"]},
    "Labels": {"org.opencontainers.image.revision": "0"}}'
mkdir right
printf '\177ELF .dep-v0 ' >right/muster-worker
chmod 555 right/muster-worker

list() {
    local IFS=,
    echo "[$*]"
}

image() {
    local layer parts layers=() digests=() history=()
    parts=$(mktemp -d)
    for layer in "${@:2}"; do
        (cd "$layer" && tar --create --file "$parts/${#layers[@]}.tar" -- *)
        digests+=("\"sha256:$(sha256sum <"$parts/${#layers[@]}.tar" | cut -d ' ' -f 1)\"")
        layers+=("\"${#layers[@]}.tar\"")
        history+=('{"created_by": "COPY"}')
    done
    echo '{"architecture": "amd64", "os": "linux", "config": '"$1"', "history": '"$(list "${history[@]}")"',
        "rootfs": {"type": "layers", "diff_ids": '"$(list "${digests[@]}")"'}}' >"$parts/config.json"
    echo '[{"Config": "config.json", "RepoTags": ["planted:1"], "Layers": '"$(list "${layers[@]}")"'}]' >"$parts/manifest.json"
    mkdir -p target/image
    (cd "$parts" && tar --create -- *) >target/image/muster-worker.tar
    rm -rf "$parts"
}
