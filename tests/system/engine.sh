# A container engine for run.sh, which sources this: the one that runs here, else one of our own, made and removed.
# Expects $work, a folder for what is downloaded and run, and `say`.
#
#   engine_start     sets DOCKER_HOST and DOCKER_CONFIG where needed; returns 1 with the reason in $engine_reason
#   engine_stop      ends the daemon that engine_start started, and removes its folder unless KEEP=1
#   engine_import_base NAME    has the base image NAME: there already, pulled, or made with debootstrap

engine_reason=
engine_origin=
base_origin=
engine_socket=
engine_run=/run/sage-system

engine_start() {
    if has_engine; then
        engine_origin="already running"
        return 0
    fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        engine_reason="no Docker engine with compose v2 and buildx answers, and only root on Debian can install one"
        return 1
    fi
    { install_engine && install_plugins && start_daemon; } || return 1
    engine_origin="dockerd of docker.io, started by hand"
}

has_engine() {
    docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1
}

install_packages() {
    local missing=()
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q ^ii || missing+=("$package")
    done
    [ "${#missing[@]}" != 0 ] || return 0
    say "installing ${missing[*]} …"
    apt-get update -qq >"$work/apt.log" 2>&1 || true  # a stale list is enough, where the packages are found
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" >>"$work/apt.log" 2>&1 ||
        { engine_reason="apt-get could not install ${missing[*]}: $(tail -n 1 "$work/apt.log")"; return 1; }
}

install_engine() {
    command -v dockerd >/dev/null || install_packages docker.io || return 1
    install_packages iptables
}

# The mirror that this machine's apt takes Debian from.
debian_mirror() {
    apt-cache policy base-files | awk '$1 ~ /^[0-9]+$/ && $2 ~ /^[a-z+]+:\/\// {print $2; exit}'
}

# Compose v2 and buildx are Debian packages from release 13 on. They need nothing but libc, so they are unpacked beside
# the engine of an older release, for this run alone, and not installed.
install_plugins() {
    export DOCKER_CONFIG=$work/docker-config
    mkdir -p "$DOCKER_CONFIG/cli-plugins"
    ! { docker compose version && docker buildx version; } >/dev/null 2>&1 || return 0
    local apt=$work/apt mirror
    mirror=$(debian_mirror)
    say "fetching compose v2 and buildx from ${mirror:-Debian} trixie …"
    mkdir -p "$apt"/{lists/partial,archives/partial,none}
    : >"$apt/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$apt/sources.list"
    cat >"$apt/apt.conf" <<END
Dir::State "$apt"; Dir::State::lists "$apt/lists"; Dir::State::status "$apt/status"; Dir::Cache "$apt";
Dir::Etc::sourcelist "$apt/sources.list"; Dir::Etc::sourceparts "$apt/none"; APT::Sandbox::User "root";
END
    (
        cd "$apt"
        export APT_CONFIG=$apt/apt.conf
        apt-get update -qq && apt-get download -qq docker-compose docker-buildx &&
            for package in ./*.deb; do dpkg-deb -x "$package" unpacked; done
    ) >"$work/plugins.log" 2>&1 ||
        { engine_reason="compose v2 and buildx could not be fetched: $(tail -n 1 "$work/plugins.log")"; return 1; }
    find "$apt/unpacked" -path '*/cli-plugins/*' -type f -exec cp -t "$DOCKER_CONFIG/cli-plugins" {} +
    docker compose version >/dev/null 2>"$work/plugins.log" && docker buildx version >/dev/null 2>>"$work/plugins.log" ||
        { engine_reason="compose v2 or buildx does not run here: $(tail -n 1 "$work/plugins.log")"; return 1; }
}

start_daemon() {
    engine_socket=$engine_run/docker.sock
    export DOCKER_HOST=unix://$engine_socket
    ! docker info >/dev/null 2>&1 || return 0  # an interrupted run left it
    say "starting dockerd …"
    mkdir -p "$work/engine" "$engine_run"
    echo '{}' >"$work/daemon.json"
    # Nothing is shared with another engine of this machine but the bridge's name and the packet filter.
    setsid dockerd --config-file "$work/daemon.json" --data-root "$work/engine" --exec-root "$engine_run/exec" \
        --pidfile "$engine_run/pid" --host "unix://$engine_socket" >"$work/dockerd.log" 2>&1 </dev/null &
    for _ in $(seq 60); do
        sleep 0.5
        ! docker info >/dev/null 2>&1 || return 0
        kill -0 $! 2>/dev/null || break
    done
    engine_reason="dockerd does not start here: $(grep -v level=info "$work/dockerd.log" | tail -n 1 | cut -c 1-300)"
    return 1
}

engine_stop() {
    [ -n "$engine_socket" ] || return 0
    local pid
    if pid=$(cat "$engine_run/pid" 2>/dev/null); then
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 60); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.5
        done
    fi
    rm -rf "$engine_run"
    [ "${KEEP:-}" = 1 ] || rm -rf "$work/engine"
    # Another engine of this machine, which owns the bridge and the chains, keeps them.
    pgrep -x dockerd >/dev/null || remove_leftovers
}

# What dockerd leaves behind when it ends: its bridge, and its rules in the packet filter.
remove_leftovers() {
    local table rule chains chain
    ! ip link show docker0 >/dev/null 2>&1 || ip link delete docker0
    for table in filter nat; do
        iptables -t "$table" -S | sed -nE '/^-A (FORWARD|PREROUTING|OUTPUT|POSTROUTING) .*(docker0|-j DOCKER)/s/^-A/-D/p' |
            while read -r rule; do xargs iptables -t "$table" <<<"$rule"; done
        chains=$(iptables -t "$table" -S | sed -n 's/^-N \(DOCKER.*\)/\1/p')
        for chain in $chains; do iptables -t "$table" -F "$chain"; done
        for chain in $chains; do iptables -t "$table" -X "$chain"; done
    done
}

engine_import_base() {
    local image=$1 root=$work/base
    if docker image inspect "$image" >/dev/null 2>&1; then
        base_origin="there already"
    elif timeout 60 docker pull -q "$image" >"$work/pull.log" 2>&1; then
        base_origin=pulled
    else
        say "no registry gives $image: $(tail -n 1 "$work/pull.log" | cut -c 1-200)"
        install_packages debootstrap || return 1
        say "making $image with debootstrap …"
        rm -rf "$root"
        debootstrap --variant=minbase bookworm "$root" "$(debian_mirror)" >"$work/debootstrap.log" 2>&1 ||
            { engine_reason="debootstrap failed: $(tail -n 1 "$work/debootstrap.log")"; return 1; }
        rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
        tar -C "$root" --exclude './dev/*' -c . | docker import - "$image" >/dev/null
        rm -rf "$root"
        base_origin="made with debootstrap"
    fi
}
