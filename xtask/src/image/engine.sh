#!/usr/bin/env bash
# Builds and runs containers with docker, podman or buildah, the first that works here. One function for each command.
set -euo pipefail

podman=(podman --storage-driver overlay)
if [[ ! -e /sys/fs/cgroup/cgroup.controllers ]]; then
    # runc is the runtime that also works where the cgroups of both versions are mounted.
    podman+=(--runtime runc --cgroup-manager cgroupfs)
fi
buildah=(buildah --storage-driver overlay)
if docker info >/dev/null 2>&1; then
    engine=(docker)
elif "${podman[@]}" info >/dev/null 2>&1; then
    engine=("${podman[@]}")
elif "${buildah[@]}" info >/dev/null 2>&1; then
    engine=("${buildah[@]}")
else
    echo "none of docker, podman and buildah works on this machine: install one" >&2
    exit 1
fi

name() {
    echo "${engine[*]}"
}

runs_containers() {
    [[ ${engine[0]} != buildah ]]
}

# Builds the image $1 of version $2 from the base $3, or else from the one that infra/docker/base names by digest. Every time
# in it is the commit's. Further options follow.
build() {
    local base=${3:-$(sed -n 's/^FROM //p' infra/docker/base/Dockerfile)} epoch revision
    if [[ -z $3 && $base != *@sha256:* ]]; then
        echo "infra/docker/base names no base by digest" >&2
        exit 1
    fi
    epoch=$(git log -1 --format=%ct || echo 0)
    revision=$(git log -1 --format=%H || echo unknown)
    local options=(--network host --tag "$1" --file infra/docker/Dockerfile --build-arg "RUST_IMAGE=$base"
        --build-arg "VERSION=$2" --build-arg "REVISION=$revision" --build-arg "SOURCE_DATE_EPOCH=$epoch" "${@:4}")
    if [[ ${engine[0]} = docker ]]; then
        SOURCE_DATE_EPOCH=$epoch docker build --output "type=docker,name=$1" "${options[@]}" .
    else
        # Docker's form, since the OCI's has no health check; chroot, which takes no privilege. What is built anew is built without
        # layers in between, whose names would be in the history.
        [[ " ${*:4} " != *" --no-cache "* ]] || options+=(--layers=false)
        "${engine[@]}" build --format docker --isolation chroot --timestamp "$epoch" "${options[@]}" .
    fi
}

# Writes the image $1 as the archive $2 in docker's form.
save() {
    mkdir -p "$(dirname "$2")"
    rm -f "$2"
    case ${engine[0]} in
        docker) docker save --output "$2" "$1" ;;
        podman) "${engine[@]}" save --format docker-archive --output "$2" "$1" ;;
        buildah) "${engine[@]}" push "$1" "docker-archive:$2:$1" ;;
    esac
}

# The digest of the configuration in the archive $1, which names its layers by theirs. Podman and Buildah put the name of the build's
# container into it, which is another each time and no part of what is shipped.
digest() {
    local config
    config=$(tar --extract --to-stdout --file "$1" manifest.json | grep --only-matching '"Config":"[^"]*"')
    config=${config#'"Config":"'}
    tar --extract --to-stdout --file "$1" "${config%'"'}" \
        | sed --regexp-extended 's/"(container|Hostname)":"[0-9a-f]*"/"\1":""/g' | sha256sum | cut --delimiter ' ' --fields 1
}

# Takes the image of the archive $1; says what it is called here.
load() {
    if ! runs_containers; then
        echo "loading an image takes docker or podman" >&2
        exit 1
    fi
    local said
    said=$("${engine[@]}" load --input "$1")
    echo "${said##*: }"
}

# Runs as the manifests do: as the user $1, with the directory $2 as /etc/muster. Further options, the image and its arguments
# follow.
run() {
    local options=(--network host --user "$1:$1" --read-only --cap-drop ALL --security-opt no-new-privileges --memory 512m
        --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --volume "$2:/etc/muster:ro")
    if [[ ${engine[0]} = podman ]]; then
        # Else podman mounts a writable /tmp and others beside the read-only root.
        options+=(--read-only-tmpfs=false)
    fi
    # The container's user goes through its parents, and lists nothing.
    chmod 711 "$2/.." "$2/../.."
    if [[ $EUID -ne 0 ]]; then
        # Without root the files belong to whom the engine maps to another user, so that all may read them.
        chmod -R a+rX "$2"
    fi
    "${engine[@]}" run "${options[@]}" "${@:3}"
}

# Says how the container $1 is confined: whether its root is read-only, its memory limit and, as the kernel sees its process,
# user, whether it may have huge pages, capabilities, whether it may not gain privileges, and its seccomp mode.
confinement() {
    local granted process seen
    granted=$("${engine[@]}" inspect --format '{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Memory}} {{.State.Pid}}' "$1")
    process=${granted##* }
    seen=$(awk '/^(Uid|THP_enabled|CapEff|NoNewPrivs|Seccomp):/ { printf "%s ", $2 }' "/proc/$process/status")
    echo "${granted% *}" "$seen"
}

# Runs a command of the container $1 inside it.
exec_inside() {
    "${engine[@]}" exec "$@"
}

logs() {
    "${engine[@]}" logs "$1" 2>&1
}

# Ends the container $1 by SIGTERM, within the manifest's grace; says its exit code.
stop() {
    "${engine[@]}" kill --signal SIGTERM "$1" >/dev/null
    timeout 45 "${engine[@]}" wait "$1"
}

remove() {
    "${engine[@]}" rm --force "$1"
}

"$@"
