# shellcheck shell=bash
# docs/conformance.md against a log of the tests that ran.

# The tests of a cargo test log, one a line: their path and their result. Those of tests/NAME.rs or tests/NAME/main.rs
# have NAME:: before them, those of an example example_NAME::, the library's nothing.
logged_tests() {
    tr -d '\r' <"$1" | awk '
        / Running (unittests )?[^ ]*\.rs / {
            file = $0
            sub(/.* Running (unittests )?/, "", file)
            sub(/(\/main)?\.rs .*/, "", file)
            prefix = ""
            if (file ~ /^tests\//) { sub(/^tests\//, "", file); prefix = file "::" }
            if (file ~ /^examples\//) { sub(/^examples\//, "", file); prefix = "example_" file "::" }
        }
        / Doc-tests / { prefix = "doc::" }
        /^test .* \.\.\. / {
            name = $2
            result = $0
            sub(/^test .* \.\.\. /, "", result)
            sub(/[, ].*/, "", result)
            print prefix name, result
        }'
}

# Judge every row of the table $1 by the results $2; print one line for each that is not as it must be. A row has an
# id, a key word, the requirement, how it is kept, and tests in backquotes.
check_conformance() {
    awk -v results="$2" '
        BEGIN {
            while ((getline line <results) > 0) {
                split(line, part, " ")
                outcome[part[1]] = part[2]
            }
        }
        function complain(what) { printf "%s: %s\n", id, what; bad = 1 }
        /^\|/ {
            cells = split($0, cell, / *\| */)
            id = cell[2]
            if (id == "id" || id ~ /^-+$/) next
            rows++
            if (cells != 7) complain("has " cells - 2 " cells, not 5")
            for (i = 2; i < cells; i++) if (cell[i] == "") complain("an empty cell")
            if (seen[id]++) complain("is there twice")
            if (cell[3] !~ /^(MUST|MUST NOT|SHALL|SHOULD|SHOULD NOT|MAY|RECOMMENDED|all)$/) complain("no key word")
            if (cell[6] ~ /^pending/) complain(cell[6])
            tests = split(cell[6], name, "`")
            for (i = 2; i <= tests; i += 2) {
                named[id]++
                result = outcome[name[i]]
                if (result == "") complain(name[i] " did not run")
                else if (result != "ok") complain(name[i] ": " result)
            }
            if (!named[id] && cell[6] !~ /^pending/) complain("names no test")
        }
        END {
            if (!rows) { print "there are no rows"; bad = 1 }
            printf "%d requirements\n", rows
            exit bad
        }' "$1"
}
