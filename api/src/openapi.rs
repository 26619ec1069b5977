//! The `OpenAPI` document: generated from the handlers, served at `/openapi.json`.

use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{OpenApi, SecurityRequirement};
use utoipa::{Modify, OpenApi as _};

/// Where everything but health and documents is.
pub(crate) const BASE: &str = "/api/v1";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Hothouse",
        description = "Durable jobs in warm, sealed sandboxes: submit, follow live, resume.\n\n\
            Errors are `application/problem+json` (RFC 9457) with a closed set of codes. \
            Lists are `{data, next_cursor}`."
    ),
    modifiers(&Bearer),
    components(schemas(crate::problem::Document, crate::problem::Code, crate::problem::FieldError))
)]
struct Base;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut OpenApi) {
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
        document.security = Some(vec![SecurityRequirement::new("bearer", Vec::<String>::new())]);
    }
}

/// The part of the document that is no route.
pub(crate) fn base() -> OpenApi {
    Base::openapi()
}

/// The whole document.
pub fn document() -> OpenApi {
    let mut document = crate::routes::open_api_router().into_openapi();
    for (path, item) in &mut document.paths.paths {
        let operations = [
            ("get", &mut item.get),
            ("post", &mut item.post),
            ("put", &mut item.put),
            ("patch", &mut item.patch),
            ("delete", &mut item.delete),
        ];
        for (method, operation) in operations {
            if let Some(operation) = operation {
                operation.operation_id = Some(operation_id(method, path));
            }
        }
    }
    document
}

/// A name that no other operation has: `post_jobs_id_cancel`. Clients are generated from these.
fn operation_id(method: &str, path: &str) -> String {
    let steps = path.trim_start_matches(BASE).split('/').filter(|step| !step.is_empty());
    let name = |step: &str| step.trim_matches(['{', '}', '*']).replace(['-', '.'], "_");
    std::iter::once(method.to_owned())
        .chain(steps.map(name))
        .collect::<Vec<_>>()
        .join("_")
}

/// A plain page of every route and every problem code.
pub(crate) fn html() -> String {
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Hothouse: the API</title>\
         <style>body{font:15px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}\
         td{padding:.2rem 1rem .2rem 0;vertical-align:top}code{font-size:.95em}</style>\
         <h1>Hothouse: the API</h1><p>The full reference is the <a href=\"/openapi.json\">OpenAPI document</a>.</p>",
    );
    let document = serde_json::to_value(document()).unwrap_or_default();
    page.push_str("<h2>Routes</h2><table>");
    for (path, methods) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            let summary = operation["summary"].as_str().unwrap_or_default();
            let row = [method.to_uppercase(), path.clone(), summary.to_owned()].map(|text| escape(&text));
            append(
                &mut page,
                format_args!(
                    "<tr><td>{}</td><td><code>{}</code></td><td>{}</td></tr>",
                    row[0], row[1], row[2]
                ),
            );
        }
    }
    page.push_str("</table><h2>Problems</h2><table>");
    for code in crate::problem::Code::ALL {
        let (status, name, title) = code.parts();
        let (status, title) = (status.as_u16(), escape(title));
        append(
            &mut page,
            format_args!(
                "<tr id=\"problem-{name}\"><td>{status}</td><td><code>{name}</code></td><td>{title}</td></tr>"
            ),
        );
    }
    page.push_str("</table></html>");
    page
}

fn append(page: &mut String, row: std::fmt::Arguments<'_>) {
    use std::fmt::Write;
    page.write_fmt(row).expect("writing into memory cannot fail");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
