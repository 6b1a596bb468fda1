"""What ``covey advise`` says: which settings fit a bundle, some rows and some boards, what they cost, what they lack.

Computes from manifests, profiles and results that were measured; every number comes with its source, and what is not
known stays unknown.

May import: job, bandit; of edge_runtime: protocol, bundle.
Must never come in: files, SQL, the network, numbers without a source.
"""
