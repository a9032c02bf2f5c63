use clap::Parser;

use crate::{bench, demo, image, scan, test};

/// Muster's checks and demonstrations.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
pub(crate) enum Command {
    /// Show everything at work: a real PostgreSQL, a real NATS with TLS, the real worker, real events.
    Demo(demo::Arguments),
    /// Start PostgreSQL and NATS once and run every test of the workspace against them.
    Test(test::Arguments),
    /// Measure on communities of up to a million members, and fail when a limit is missed.
    Bench(bench::Arguments),
    /// Run every check that a change must pass, and print one table of verdicts.
    Ci,
    /// Render the Kubernetes manifests and check them against the schema and Muster's rules.
    Manifests {
        /// Try the admission policies, planted faults and production on the cluster that kubectl speaks to.
        #[arg(long)]
        cluster: bool,
    },
    /// Check the alerts and the dashboard.
    Observability,
    /// Run every command of the runbooks against real servers and check its stated outcome.
    Runbooks {
        /// Run the blocks that need a cluster, too, on the one that KUBECONFIG names: an empty one, since they change it.
        #[arg(long)]
        cluster: bool,
    },
    /// Check that what the documents name exists, and that their tables are current.
    Documentation {
        /// Write the tables anew.
        #[arg(long)]
        write: bool,
    },
    /// Build the worker's image and run it as the manifests would.
    Image(image::Arguments),
    /// Scan image, manifests, workflows and repository; a finding fails.
    Scan(scan::Arguments),
}
