"""A swarm: many real protocol sessions in a few processes, which answer as devices do and train nothing.

For load tests, and for sizing a broker. Each session has an MQTT connection of its own, with TLS and signatures as the
fleet has them; its scalars are drawn, so it works only for jobs that are for the swarm (server/job/selector.py).

``swarm.py`` runs the processes, ``worker.py`` is one of them, ``session.py`` one device; ``protection.py`` signs and
checks its messages, ``entrance.py`` paces the logins, ``answers.py`` has what a session says of itself and of its
training, ``counts.py`` what all have seen, ``summary.py`` how it is told, ``members.py`` the devices' keys,
``descriptors.py`` the limit of open files, ``login.py`` why a broker does not let a session in.

May import: storage, trust, job, errors; of edge_runtime: trust, signing, network, protocol, files, values, errors.
Must never come in: rules of the server, printing, models.
"""
