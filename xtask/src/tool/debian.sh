# install PACKAGE: installs a Debian package; needs root.
# unpack PACKAGE DIRECTORY: unpacks a package without installing it, for those that would start a service. The shared libraries
# that it depends on are installed.
set -eu
export DEBIAN_FRONTEND=noninteractive
case $1 in
install)
    apt-get -qq update
    # Keeps PostgreSQL's package from making and starting a cluster: only the programs are wanted.
    guard=/etc/postgresql-common/createcluster.d/muster.conf
    mkdir -p "${guard%/*}"
    trap 'rm -f "$guard"' EXIT
    echo 'create_main_cluster = false' >"$guard"
    apt-get -qq install -y --no-install-recommends "$2" >&2
    ;;
unpack)
    cd "$3"
    as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
    # The lists of packages may be missing or old.
    apt-get -qq download "$2" || { as_root apt-get -qq update && apt-get -qq download "$2"; }
    dpkg-deb --extract "$2"_*.deb unpacked
    if ldd unpacked/usr/*bin/* 2>/dev/null | grep -q 'not found'; then
        dpkg-deb --field "$2"_*.deb Depends | tr ',' '\n' | sed -En '/^ *libjs-/d; s/^ *(lib[^ ]*).*/\1/p' |
            as_root xargs apt-get -qq install -y --no-install-recommends >&2
    fi
    ;;
esac
