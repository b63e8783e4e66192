//! Who may call what between the roles (`decisions.md` 23).
//!
//! A role is a DNS name in the caller's certificate. [`RULES`] lists every call with the roles that may make it; what
//! is not listed may be called by nobody. Pure but for [`check`], which reads the certificate of the connection.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use flatbed_proto::status::to_status;
use flatbed_types::ErrorCode;
use tonic::Status;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What a process does in a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Decides.
    Coordinator,
    /// Speaks HTTP with clients.
    Gateway,
    /// Moves data.
    Worker,
    /// A person with `flatbed jobs`, or a tool.
    Operator,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 4] = [Role::Coordinator, Role::Gateway, Role::Worker, Role::Operator];

    /// The DNS name that stands for it in certificates.
    pub const fn domain(self) -> &'static str {
        match self {
            Role::Coordinator => "coordinator.flatbed",
            Role::Gateway => "gateway.flatbed",
            Role::Worker => "worker.flatbed",
            Role::Operator => "operator.flatbed",
        }
    }
}

/// One call, and who may make it.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The service, with its package.
    pub service: &'static str,
    /// The method.
    pub method: &'static str,
    /// Who may call it.
    pub callers: &'static [Role],
}

const fn rule(service: &'static str, method: &'static str, callers: &'static [Role]) -> Rule {
    Rule { service, method, callers }
}

const CONTROL: &str = "flatbed.lease.v1.Control";
const JOBS: &str = "flatbed.job.v1.Jobs";
const TRUST: &str = "flatbed.trust.v1.Trust";
const HEALTH: &str = "grpc.health.v1.Health";
const REFLECTION: &str = "grpc.reflection.v1.ServerReflection";
/// Who starts, follows and stops jobs. Coordinators ask each other about the jobs that they own.
const JOB_CALLERS: &[Role] = &[Role::Gateway, Role::Operator, Role::Coordinator];

/// Who registers clients, and looks at them.
const CLIENT_CALLERS: &[Role] = &[Role::Gateway, Role::Operator];
/// Who deals with assertions, tokens and the keys that sign them: nobody else sees a private key.
const TOKEN_CALLERS: &[Role] = &[Role::Gateway];

/// Every call that there is.
pub const RULES: &[Rule] = &[
    rule(CONTROL, "Session", &[Role::Worker]),
    rule(CONTROL, "Commit", &[Role::Worker]),
    rule(CONTROL, "Complete", &[Role::Worker]),
    rule(JOBS, "CreateJob", JOB_CALLERS),
    rule(JOBS, "GetJob", JOB_CALLERS),
    rule(JOBS, "GetPage", JOB_CALLERS),
    rule(JOBS, "ListJobs", JOB_CALLERS),
    rule(JOBS, "StopJob", JOB_CALLERS),
    rule(JOBS, "GetSource", JOB_CALLERS),
    rule(JOBS, "ReadResource", JOB_CALLERS),
    rule(JOBS, "SearchGroups", JOB_CALLERS),
    rule(JOBS, "PutCohort", JOB_CALLERS),
    rule(JOBS, "GetCohort", JOB_CALLERS),
    rule(JOBS, "ListCohorts", JOB_CALLERS),
    rule(JOBS, "DeleteCohort", JOB_CALLERS),
    rule(JOBS, "PutReceipt", JOB_CALLERS),
    rule(JOBS, "GetReceipt", JOB_CALLERS),
    rule(JOBS, "DeleteReceipt", JOB_CALLERS),
    rule(TRUST, "GetClient", CLIENT_CALLERS),
    rule(TRUST, "PutClient", CLIENT_CALLERS),
    rule(TRUST, "RemoveClient", CLIENT_CALLERS),
    rule(TRUST, "ListClients", CLIENT_CALLERS),
    rule(TRUST, "UseJti", TOKEN_CALLERS),
    rule(TRUST, "Revoke", CLIENT_CALLERS),
    rule(TRUST, "IsRevoked", TOKEN_CALLERS),
    rule(TRUST, "Authorize", TOKEN_CALLERS),
    rule(TRUST, "GetSigningKeys", TOKEN_CALLERS),
    rule(TRUST, "RotateSigningKeys", &[Role::Operator]),
    rule(TRUST, "PutInvitation", &[Role::Operator]),
    rule(TRUST, "ListInvitations", &[Role::Operator]),
    rule(TRUST, "RemoveInvitation", &[Role::Operator]),
    rule(TRUST, "CheckInvitation", &[Role::Gateway]),
    rule(TRUST, "RegisterClient", &[Role::Gateway]),
    rule(HEALTH, "Check", &Role::ALL),
    rule(HEALTH, "Watch", &Role::ALL),
    rule(REFLECTION, "ServerReflectionInfo", &[Role::Operator]),
];

/// Whether somebody with these roles may call this path (`/package.Service/Method`).
pub fn may_call(roles: &[Role], path: &str) -> bool {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
        return false;
    };
    let rule = RULES.iter().find(|rule| rule.service == service && rule.method == method);
    rule.is_some_and(|rule| roles.iter().any(|role| rule.callers.contains(role)))
}

/// The roles that a certificate gives, in DER; whether it is to be trusted is not asked here.
pub fn roles_of(certificate: &[u8]) -> Vec<Role> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let has = |role: &Role| {
        let is = |name: &GeneralName<'_>| matches!(name, GeneralName::DNSName(dns) if *dns == role.domain());
        names.value.general_names.iter().any(is)
    };
    Role::ALL.into_iter().filter(has).collect()
}

/// Lets a call through when the caller's certificate has a role that may make it.
pub async fn check(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let connection = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
    let chain = connection.and_then(TlsConnectInfo::peer_certs);
    // The first is the caller's own; the handshake has verified it.
    let Some(certificate) = chain.as_ref().and_then(|chain| chain.first()) else {
        return refused(Status::unauthenticated("a client certificate is needed"));
    };
    let roles = roles_of(certificate);
    if may_call(&roles, path) {
        return next.run(request).await;
    }
    tracing::warn!(path, ?roles, "a call was refused: the certificate has no role that may make it");
    refused(to_status(ErrorCode::Forbidden, format!("the certificate has no role that may call {path}")))
}

/// Lets a call through when an operator may make it: for addresses that know no certificates, where anybody who reaches them
/// is taken for one.
pub async fn check_operator(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if may_call(&[Role::Operator], path) {
        return next.run(request).await;
    }
    tracing::warn!(path, "a call was refused: it is not for operators");
    refused(to_status(ErrorCode::Forbidden, format!("operators may not call {path}")))
}

fn refused(status: Status) -> Response {
    status.into_http()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    /// The table once more, by hand: a change must be made in both places.
    fn expected(role: Role, service: &str, method: &str) -> bool {
        match service {
            CONTROL => role == Role::Worker,
            JOBS => role != Role::Worker,
            TRUST => match method {
                "GetClient" | "PutClient" | "RemoveClient" | "ListClients" | "Revoke" => {
                    matches!(role, Role::Gateway | Role::Operator)
                }
                "RotateSigningKeys" | "PutInvitation" | "ListInvitations" | "RemoveInvitation" => {
                    role == Role::Operator
                }
                _ => role == Role::Gateway,
            },
            HEALTH => true,
            REFLECTION => role == Role::Operator,
            _ => false,
        }
    }

    #[test]
    fn every_role_and_every_call() {
        let all = [flatbed_proto::FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET];
        let files = all.into_iter().flat_map(|set| prost_types::FileDescriptorSet::decode(set).unwrap().file);
        let mut seen = 0;
        for file in files {
            for service in &file.service {
                let name = format!("{}.{}", file.package(), service.name());
                for method in &service.method {
                    let path = format!("/{name}/{}", method.name());
                    for role in Role::ALL {
                        assert_eq!(
                            may_call(&[role], &path),
                            expected(role, &name, method.name()),
                            "{role:?} {path}"
                        );
                    }
                    assert!(may_call(&Role::ALL, &path), "nobody may call {path}");
                    assert!(!may_call(&[], &path), "{path}");
                    seen += 1;
                }
            }
        }
        assert_eq!(seen + 1, RULES.len(), "the table names calls that there are, and reflection");
        let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        for role in Role::ALL {
            assert_eq!(may_call(&[role], reflection), role == Role::Operator);
        }
    }

    #[test]
    fn what_is_not_listed_is_for_nobody() {
        for path in [
            "",
            "/",
            "/flatbed.job.v1.Jobs",
            "/flatbed.job.v1.Jobs/",
            "/flatbed.job.v1.Jobs/GetJob/x",
            "x/GetJob",
        ] {
            assert!(!may_call(&Role::ALL, path), "{path}");
        }
    }

    #[test]
    fn roles_are_whole_names_in_the_certificate() {
        let certificate = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let key = rcgen::KeyPair::generate().unwrap();
            rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap()
        };
        let roles = |names: &[&str]| roles_of(certificate(names).der());
        assert_eq!(roles(&["worker.flatbed"]), [Role::Worker]);
        assert_eq!(
            roles(&["localhost", "operator.flatbed", "gateway.flatbed"]),
            [Role::Gateway, Role::Operator]
        );
        assert_eq!(roles(&["worker.flatbed.example", "xworker.flatbed", "127.0.0.1"]), []);
        assert_eq!(roles_of(b"no certificate"), []);
    }
}
