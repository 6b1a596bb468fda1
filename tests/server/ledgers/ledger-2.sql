-- A ledger of schema version 2: its tables and rows as the Covey of that version wrote them.
BEGIN TRANSACTION;
CREATE TABLE devices (
    fleet TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL, birth TEXT, adapter_sha256 TEXT,
    last_seen TEXT NOT NULL DEFAULT (datetime('now')), PRIMARY KEY (fleet, name));
INSERT INTO "devices" VALUES('default','pi-a','online','{"type":"birth","v":3,"device":"pi-a","boot_id":"1","covey_version":"0","python_version":"3.11","machine":"aarch64","runtimes":{"onnxruntime":"1.20"},"methods":["spzo"],"rows":12,"bundle_sha256":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","adapter_sha256":"2222222222222222222222222222222222222222222222222222222222222222","capability":{"kind":"forward-only","levels":[],"bytes_free":null}}','2222222222222222222222222222222222222222222222222222222222222222','2026-11-22 01:00:00');
INSERT INTO "devices" VALUES('default','phone','offline',NULL,NULL,'2026-11-22 02:00:00');
CREATE TABLE jobs (
    name TEXT PRIMARY KEY, fleet TEXT NOT NULL, bundle_sha256 TEXT NOT NULL, config TEXT NOT NULL,
    state TEXT NOT NULL, created_at TEXT NOT NULL DEFAULT (datetime('now')), finished_at TEXT,
    loss_start REAL, accuracy_start REAL, result_dir TEXT);
INSERT INTO "jobs" VALUES('first','default','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','{"name": "first", "eval_file": "test.jsonl", "rounds": 2, "steps": 4, "batch_size": 8, "split": 2, "seed": 0, "cohort": 0, "over_selection": 1.0, "min_reports": 1, "min_devices": 0, "deadline_s": 600.0, "max_attempts": 5, "eval_every": 1, "weighting": "examples", "schedule": "linear", "train": null, "method": "spzo", "server_momentum": 0.0, "step": {"variant": "nested", "difference": "central", "front_perturbations": 1, "back_perturbations": 8, "eps": 0.01, "learning_rate": 0.05, "leave_one_out": false, "normalize": "rms", "shared_directions": false, "seed_pool": null}, "adaptive": null, "privacy": null}','finished','2026-11-22 01:00:00','2026-11-22 01:00:00',0.7,0.5,'jobs/first');
INSERT INTO "jobs" VALUES('second','default','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','{"name": "second", "eval_file": "test.jsonl", "rounds": 2, "steps": 4, "batch_size": 8, "split": 2, "seed": 0, "cohort": 0, "over_selection": 1.0, "min_reports": 1, "min_devices": 0, "deadline_s": 600.0, "max_attempts": 5, "eval_every": 1, "weighting": "examples", "schedule": "linear", "train": null, "method": "spzo", "server_momentum": 0.0, "step": {"variant": "nested", "difference": "central", "front_perturbations": 1, "back_perturbations": 8, "eps": 0.01, "learning_rate": 0.05, "leave_one_out": false, "normalize": "rms", "shared_directions": false, "seed_pool": null}, "adaptive": null, "privacy": null}','running','2026-11-22 02:00:00',NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('third','default','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','{"name": "third", "eval_file": "test.jsonl", "rounds": 2, "steps": 4, "batch_size": 8, "split": 2, "seed": 0, "cohort": 0, "over_selection": 1.0, "min_reports": 1, "min_devices": 0, "deadline_s": 600.0, "max_attempts": 5, "eval_every": 1, "weighting": "examples", "schedule": "linear", "train": null, "method": "spzo", "server_momentum": 0.0, "step": {"variant": "nested", "difference": "central", "front_perturbations": 1, "back_perturbations": 8, "eps": 0.01, "learning_rate": 0.05, "leave_one_out": false, "normalize": "rms", "shared_directions": false, "seed_pool": null}, "adaptive": null, "privacy": null}','failed','2026-11-22 03:00:00','2026-11-22 03:00:00',NULL,NULL,NULL);
CREATE TABLE offers (
    job TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL, device TEXT NOT NULL, state TEXT NOT NULL,
    detail TEXT, scalars BLOB, examples INTEGER, loss REAL, seconds REAL, front_passes INTEGER, back_passes INTEGER,
    front_seconds REAL, back_seconds REAL, bytes_up INTEGER NOT NULL DEFAULT 0, bytes_down INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, round, attempt, device), FOREIGN KEY (job, round, attempt) REFERENCES rounds);
INSERT INTO "offers" VALUES('first',0,0,'pi-a','refused','no space left on device',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,0);
INSERT INTO "offers" VALUES('first',0,0,'pi-b','reported',NULL,X'0000003F0000C0BF',12,0.68,1.5,8,32,0.08,0.64,0,0);
INSERT INTO "offers" VALUES('first',0,1,'pi-a','reported',NULL,X'0000003F0000C0BF',12,0.6,1.5,8,32,0.08,0.64,100,400);
INSERT INTO "offers" VALUES('first',0,1,'pi-b','reported',NULL,X'0000003F0000C0BF',12,0.6,1.5,8,32,0.08,0.64,100,400);
INSERT INTO "offers" VALUES('first',1,0,'pi-a','reported',NULL,X'0000003F0000C0BF',12,0.5,1.5,8,32,0.08,0.64,100,400);
INSERT INTO "offers" VALUES('first',1,0,'pi-b','reported',NULL,X'0000003F0000C0BF',12,0.5,1.5,8,32,0.08,0.64,100,400);
INSERT INTO "offers" VALUES('second',0,0,'pi-a','offered',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,0,0);
INSERT INTO "offers" VALUES('second',0,0,'pi-b','reported',NULL,X'0000003F0000C0BF',12,0.69,1.5,8,32,0.08,0.64,0,0);
CREATE TABLE rounds (
    job TEXT NOT NULL REFERENCES jobs(name), round INTEGER NOT NULL, attempt INTEGER NOT NULL, state TEXT NOT NULL,
    plan TEXT NOT NULL, base_sha256 TEXT NOT NULL, base_mean_square REAL,
    opened_at TEXT NOT NULL DEFAULT (datetime('now')), closed_at TEXT, result_sha256 TEXT, log_sha256 TEXT,
    log_size_bytes INTEGER, terms INTEGER, mean_square REAL, figures TEXT,
    loss REAL, accuracy REAL, PRIMARY KEY (job, round, attempt));
INSERT INTO "rounds" VALUES('first',0,0,'abandoned','{"split":2,"rule":{"variant":"nested","difference":"central","front_perturbations":1,"back_perturbations":8,"eps":0.01,"learning_rate":0.05,"leave_one_out":false,"normalize":"rms","shared_directions":false,"seed_pool":null}}','0000000000000000000000000000000000000000000000000000000000000000',NULL,'2026-11-22 01:00:00','2026-11-22 01:00:00',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "rounds" VALUES('first',0,1,'aggregated','{"split":2,"rule":{"variant":"nested","difference":"central","front_perturbations":1,"back_perturbations":8,"eps":0.01,"learning_rate":0.05,"leave_one_out":false,"normalize":"rms","shared_directions":false,"seed_pool":null}}','0000000000000000000000000000000000000000000000000000000000000000',NULL,'2026-11-22 02:00:00','2026-11-22 02:00:00','1111111111111111111111111111111111111111111111111111111111111111','eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',120,16,0.25,'{"split":2,"front_variance":0.5,"back_variance":0.25,"front_s":0.01,"back_s":0.02}',0.6,0.75);
INSERT INTO "rounds" VALUES('first',1,0,'aggregated','{"split":2,"rule":{"variant":"nested","difference":"central","front_perturbations":1,"back_perturbations":8,"eps":0.01,"learning_rate":0.025,"leave_one_out":false,"normalize":"rms","shared_directions":false,"seed_pool":null}}','1111111111111111111111111111111111111111111111111111111111111111',0.25,'2026-11-22 03:00:00','2026-11-22 03:00:00','2222222222222222222222222222222222222222222222222222222222222222','eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee',120,16,0.25,'{"split":2,"front_variance":0.5,"back_variance":0.25,"front_s":0.01,"back_s":0.02}',0.5,0.75);
INSERT INTO "rounds" VALUES('second',0,0,'open','{"split":2,"rule":{"variant":"nested","difference":"central","front_perturbations":1,"back_perturbations":8,"eps":0.01,"learning_rate":0.05,"leave_one_out":false,"normalize":"rms","shared_directions":false,"seed_pool":null}}','0000000000000000000000000000000000000000000000000000000000000000',NULL,'2026-11-22 04:00:00',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
COMMIT;
PRAGMA user_version = 2;
