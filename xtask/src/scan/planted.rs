use std::collections::BTreeMap;

use super::*;

/// What makes a copy of what is scanned, with exceptions that do not expire, and an image as it must be for its scans.
const COPY: &str = concat!(
    "(cd \"$0\" && cp -r .github infra .hadolint.yaml .trivyignore.yaml .dive-ci deny.toml \"$OLDPWD\")\nmkdir .git\n",
    "sed -Ei 's/[0-9]{4}-[0-9]{2}-[0-9]{2}/9999-01-01/' .trivyignore.yaml deny.toml\n",
    include_str!("../image/plant.sh"),
    "[[ $1 != image-* ]] || image \"$config\" right\n",
);

/// Plants a fault in a copy of the repository, and answers how the scan ends and its report; `None` when it cannot be run here.
fn scanned(scan: &str, fault: &str) -> Option<(Verdict, String)> {
    let root = tempfile::tempdir().unwrap();
    let mut plant = Command::new("bash");
    plant.arg("-c").arg(format!("{COPY}{fault}")).arg(cargo::root()).arg(scan).current_dir(&root);
    assert!(plant.status().unwrap().success(), "{fault}");
    let verdict = one(scan, root.path()).unwrap();
    assert!(
        verdict != Verdict::NotRun || Verdict::NotRun.enforced() == Verdict::NotRun,
        "{scan} was not run"
    );
    let report =
        fs::read_to_string(root.path().join(REPORTS).join(format!("{scan}.sarif"))).unwrap_or_default();
    (verdict != Verdict::NotRun).then_some((verdict, report))
}

#[test]
fn every_planted_fault_fails_its_scan() {
    let faults: BTreeMap<String, BTreeMap<String, String>> =
        toml::from_str(include_str!("planted.toml")).unwrap();
    for (scan, faults) in faults {
        let Some((verdict, report)) = scanned(&scan, "") else { continue };
        assert_eq!(verdict, Verdict::Passed, "{scan} without a fault: {report}");
        for (fault, finds) in faults {
            let (verdict, report) = scanned(&scan, &fault).unwrap();
            assert!(
                verdict == Verdict::Failed && report.contains(&finds),
                "{scan}: {fault}: {verdict:?}, {report}"
            );
        }
    }
}

#[test]
fn a_vulnerability_fails_the_scan_when_it_has_a_fix_and_no_scan_passes_without_a_database() {
    let root = tempfile::tempdir().unwrap();
    let Ok(trivy) = tool::find("trivy") else {
        return assert!(Verdict::NotRun.enforced() == Verdict::NotRun, "no trivy");
    };
    fs::copy(cargo::root().join(".trivyignore.yaml"), root.path().join(".trivyignore.yaml")).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = script(&trivy, root.path()).unwrap();
        command.env("REPORT", root.path().join("sarif")).env("TRIVY_DB_REPOSITORY", "localhost:1/none");
        command.args(arguments).status().unwrap().code()
    };
    for (fixed, code) in [("1.11.1", 1), ("", 0)] {
        let planted = include_str!("vulnerability.json").replace("FIXED", fixed);
        fs::write(root.path().join("findings.json"), planted).unwrap();
        assert_eq!(run(&["gate", &root.path().join("findings.json").display().to_string()]), Some(code));
        assert!(fs::read_to_string(root.path().join("sarif")).unwrap().contains("CVE-2026-25541"));
    }
    assert_eq!(run(&["repository-vulnerabilities"]), Some(NOT_RUN));
}
