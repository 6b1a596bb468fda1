"""A swarm: many real protocol sessions in a few processes, which answer as devices do and train nothing, or one bundle.

For load tests, and for sizing a broker. Each session has an MQTT connection of its own, with TLS and signatures as the
fleet has them; its scalars are drawn, or measured on rows that are no fleet's, so it works only for jobs that are for
the swarm (server/job/selector.py).

``swarm.py`` runs the processes, ``worker.py`` is one of them, ``surroundings.py`` what its sessions share,
``session.py`` one device; ``protection.py`` signs and checks its messages, ``entrance.py`` paces the logins,
``shared_tls.py`` is their TLS, ``login.py`` says why a broker does not let a session in. ``plan_answers.py`` is what a
session does with plans, ``answers.py`` what it says of itself and of training in no time; ``training.py`` trains what
is ``asked.py``, for all sessions of a process, on rows that may be ``drawn_rows.py``. ``counts.py`` has what all have
seen, ``summary.py`` how it is told, ``members.py`` the devices' keys, ``descriptors.py`` the limit of open files.

May import: storage, trust, job, errors; of edge_runtime: agent, store, engines, data, host, trust, signing, network,
    protocol, bundle, files, values, errors.
Must never come in: rules of the server, printing, a step of training of its own.
"""
