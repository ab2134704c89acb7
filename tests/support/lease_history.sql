-- The history of leases, kept by the database itself while tests run. See lease_history.py, which installs it.
CREATE SCHEMA lease_history;

-- A sequence is not rolled back: it remembers a refusal also where the program swallows the error and goes on (it takes
-- the row for one that PostgreSQL will not write, leaves it out and says so in its history).
CREATE SEQUENCE lease_history.refusals;

-- A chapter is one request's history between two changes by hand. (btree_gist, which would let the constraint below
-- ask for "the same id", is not everywhere; ranges of numbers can be compared without it.)
CREATE TABLE lease_history.chapters (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request text NOT NULL
);
CREATE INDEX ON lease_history.chapters (request, number);

CREATE TABLE lease_history.grants (
    chapter bigint NOT NULL REFERENCES lease_history.chapters ON DELETE CASCADE,
    epoch bigint NOT NULL,
    owner text NOT NULL,
    begins timestamptz NOT NULL,
    ends timestamptz NOT NULL CHECK (ends >= begins),
    PRIMARY KEY (chapter, epoch),
    CONSTRAINT never_two_at_the_same_request
        EXCLUDE USING gist (int8range(chapter, chapter, '[]') WITH &&, tstzrange(begins, ends) WITH &&)
);

CREATE FUNCTION lease_history.refuse(complaint text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM nextval('lease_history.refusals');
    RAISE EXCEPTION 'lease history: %', complaint
        USING HINT = 'A test that moves leases by hand does so over `database.connect()` (or execute, or the outsider).';
END $$;

-- The lease of a row as somebody outside left it is where its history begins, or begins anew.
CREATE FUNCTION lease_history.begin_chapter(request text, epoch bigint, owner text, until timestamptz)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    begun bigint;
BEGIN
    INSERT INTO lease_history.chapters (request) VALUES (begin_chapter.request) RETURNING number INTO begun;
    IF owner IS NOT NULL AND until IS NOT NULL THEN
        INSERT INTO lease_history.grants VALUES (begun, epoch, owner, least(now(), until), until);
    END IF;
    RETURN begun;
END $$;

-- A grant: the epoch went up by one and there is an owner. What remains to be said is when it began, because the
-- constraint compares times. PostgreSQL knows two: now(), at which the granting transaction started, and
-- clock_timestamp(), at which this line runs. Neither will do everywhere:
--
-- * Over a lease that simply ended. The program promised `reconcile_lease_until <= now()`, with the very now() that
--   is read here, of the very version of the row that is replaced here (it is locked). So the grant begins at now():
--   a right program may meet the end exactly, and ranges exclude their end. Not clock_timestamp(): a claim that did not
--   ask for the end, but waited for a lock until the end had passed, would look as if it had.
-- * Over a row that was free. Its release may have committed after the claim's transaction started (the claim's
--   statement ran for a while, or waited; LockRows then reads the newest version, which is due and free). Then now()
--   lies before the release, though nobody held the row at the same time: the row lock had both one after the other,
--   and the claim replaced a version that said "free". That order is proof, whatever the clocks say, so the grant
--   begins when the last one ended if that is later. What freed the row under its holder's hands is not seen here:
--   the database cannot know who should have. (The fences of release and hand-back have tests of their own.)
--
-- Both also hold where all of it has one now() (in one transaction, or in one microsecond): a grant that ended where it
-- began is an empty range, which overlaps nothing.
CREATE FUNCTION lease_history.grant_to(chapter bigint, epoch bigint, owner text, until timestamptz, was_free boolean)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    since timestamptz := now();
BEGIN
    IF was_free THEN
        SELECT greatest(now(), max(g.ends)) INTO since FROM lease_history.grants g
        WHERE g.chapter = grant_to.chapter;
    END IF;
    -- (An intersection, not &&: the constraint's index would find all grants of that time, the key finds the request's.)
    IF EXISTS (SELECT FROM lease_history.grants g
               WHERE g.chapter = grant_to.chapter
                 AND NOT isempty(tstzrange(g.begins, g.ends) * tstzrange(since, greatest(since, until))))
    THEN
        PERFORM nextval('lease_history.refusals');  -- remembered here; the constraint is what judges
    END IF;
    INSERT INTO lease_history.grants VALUES (chapter, epoch, owner, since, greatest(since, until));
END $$;

CREATE FUNCTION lease_history.write() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    old_owner text := OLD.reconcile_lease_owner;
    new_owner text := NEW.reconcile_lease_owner;
    old_epoch bigint := OLD.reconcile_lease_epoch;
    new_epoch bigint := NEW.reconcile_lease_epoch;
    of bigint;
BEGIN
    IF current_setting('reconsup.by_hand', true) = 'on' THEN
        PERFORM lease_history.begin_chapter(NEW.id, new_epoch, new_owner, NEW.reconcile_lease_until);
        RETURN NULL;
    END IF;
    SELECT max(c.number) INTO of FROM lease_history.chapters c WHERE c.request = OLD.id;
    IF of IS NULL THEN
        of := lease_history.begin_chapter(OLD.id, old_epoch, old_owner, OLD.reconcile_lease_until);
    END IF;

    IF (new_owner IS NULL) <> (NEW.reconcile_lease_until IS NULL) THEN
        PERFORM lease_history.refuse(format('%s has half a lease', NEW.id));
    ELSIF new_epoch = old_epoch + 1 AND new_owner IS NOT NULL THEN
        PERFORM lease_history.grant_to(of, new_epoch, new_owner, NEW.reconcile_lease_until, old_owner IS NULL);
    ELSIF new_epoch <> old_epoch THEN
        PERFORM lease_history.refuse(format('the epoch of %s went from %s to %s (owner %s, then %s)',
            NEW.id, old_epoch, new_epoch, coalesce(old_owner, 'nobody'), coalesce(new_owner, 'nobody')));
    ELSIF new_owner IS NULL THEN
        -- Given back: it ends now, by the clock, for the row was its holder's up to this line; a lease that had ended
        -- before stays as short as it was, and no clock that steps back makes it end before it began.
        UPDATE lease_history.grants g SET ends = greatest(g.begins, least(g.ends, clock_timestamp()))
        WHERE g.chapter = of AND g.epoch = new_epoch;
    ELSIF new_owner = old_owner THEN
        -- Renewed, longer or shorter. Also after it had ended: the epoch is the same, so nobody had it in between.
        UPDATE lease_history.grants g SET ends = greatest(g.begins, NEW.reconcile_lease_until)
        WHERE g.chapter = of AND g.epoch = new_epoch;
    ELSE
        PERFORM lease_history.refuse(format('the owner of %s went from %s to %s in epoch %s, without a grant',
            NEW.id, coalesce(old_owner, 'nobody'), new_owner, new_epoch));
    END IF;
    RETURN NULL;
END $$;

-- Inserted with a lease: the other service's rows of before, or a test's.
CREATE FUNCTION lease_history.write_inserted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    PERFORM lease_history.begin_chapter(
        NEW.id, NEW.reconcile_lease_epoch, NEW.reconcile_lease_owner, NEW.reconcile_lease_until);
    RETURN NULL;
END $$;

-- The program deletes no request. Whoever does takes its history along; the id may come again.
CREATE FUNCTION lease_history.write_deleted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    DELETE FROM lease_history.chapters c WHERE c.request = OLD.id;
    RETURN NULL;
END $$;

-- After the change, so that what is refused is what would have been written. A touch moves no lease and costs nothing.
CREATE TRIGGER lease_history AFTER UPDATE ON app.payment_requests FOR EACH ROW
    WHEN ((OLD.reconcile_lease_owner, OLD.reconcile_lease_until, OLD.reconcile_lease_epoch)
          IS DISTINCT FROM (NEW.reconcile_lease_owner, NEW.reconcile_lease_until, NEW.reconcile_lease_epoch))
    EXECUTE FUNCTION lease_history.write();
CREATE TRIGGER lease_history_inserted AFTER INSERT ON app.payment_requests FOR EACH ROW
    WHEN (NEW.reconcile_lease_owner IS NOT NULL) EXECUTE FUNCTION lease_history.write_inserted();
CREATE TRIGGER lease_history_deleted AFTER DELETE ON app.payment_requests FOR EACH ROW
    EXECUTE FUNCTION lease_history.write_deleted();
