#!/bin/sh
# Users and permissions of a Covey fleet on RabbitMQ: each device may write and read its own topics, and read the hello;
# the server may do all of it. Run it as root after covey fleet token, and again for each new device:
#
#   rabbitmq-users.sh FLEET NAME...
#   rabbitmq-users.sh --revoke FLEET NAME...         after covey device revoke: throws the device out at once
#
# RabbitMQ writes topics with dots in place of slashes, and its permissions are regular expressions: a dot in the name of
# a device or of the fleet would match any letter, so such names are refused.
set -eu

VHOST=covey
PORT=${COVEY_MQTT_PORT:-8883}
EXCHANGE=amq.topic
WRITES='birth|state|profile|report|log|released|predicted|probe'
READS='plan|report\.ack|log\.get|release|predict|probe'
BESIDE='-check|-profile|-echo|-listen'       # the second connections of a device: doctor and profile

revoke=false
if [ "${1:-}" = --revoke ]; then revoke=true; shift; fi
[ $# -ge 1 ] || { sed -n '2,9p' "$0"; exit 2; }
fleet=$1; shift
for name in "$fleet" "$@"; do
    case $name in *[!A-Za-z0-9_-]*|'') echo "$name: use names of letters, digits, - and _ with RabbitMQ" >&2; exit 2 ;; esac
done

user() {                                     # NAME QUEUES WRITE READ
    rabbitmqctl --quiet add_user -- "$1" "$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" 2>/dev/null || true
    rabbitmqctl --quiet clear_password -- "$1"
    rabbitmqctl --quiet set_permissions -p $VHOST -- "$1" "^$2$" "^($2|$EXCHANGE)$" "^($2|$EXCHANGE)$"
    rabbitmqctl --quiet set_topic_permissions -p $VHOST -- "$1" $EXCHANGE "$3" "$4"
}

if $revoke; then
    for name in "$@"; do
        rabbitmqctl --quiet delete_user -- "$name"
        rabbitmqctl --quiet close_all_user_connections -- "$name" "revoked" || true
    done
    exit 0
fi

rabbitmqctl --quiet add_vhost $VHOST 2>/dev/null || true
# By the port, because RabbitMQ reads a user name with a colon, as the server's, as VHOST:USER else.
rabbitmqctl --quiet set_global_parameter mqtt_port_to_vhost_mapping "{\"$PORT\":\"$VHOST\"}"
own="covey\.v1\.$fleet"
user "server:$fleet" "mqtt-subscription-covey-server-$fleet-.*qos[01]" "^$own\..*$" "^$own\..*$"
for name in "$@"; do
    queues="mqtt-subscription-covey-$fleet-$name($BESIDE)?qos[01]"
    user "$name" "$queues" "^$own\.{username}\.($WRITES)$" "^($own\.{username}\.($READS)|$own\.hello)$"
done
