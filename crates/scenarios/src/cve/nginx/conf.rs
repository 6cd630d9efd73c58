//! Its configuration: a location for each fix.

use super::Ports;
use super::asked::Asked;
use std::path::Path;

pub fn text(tree: &Path, dir: &Path, ports: Ports, asked: &Asked) -> String {
    let (tree, dir) = (tree.display(), dir.display());
    let Ports {
        web,
        web2,
        tls,
        mail,
        mail_two_lines,
    } = ports;
    let [plain, scgi, uwsgi, before_tls, auth, names, two_lines] = asked.ports();
    format!(
        r#"load_module {tree}/objs/ngx_mail_module.so;
user root;
daemon off;
worker_processes 2;
pid {dir}/pid;
error_log {dir}/error.log info;
events {{ worker_connections 256; }}

http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    types {{ text/html html; }}
    default_type text/html;
    include {tree}/conf/win-utf;

    server {{
        listen 127.0.0.1:{web};
        listen 127.0.0.1:{web2} http2;
        root {dir}/www;
        location /media/ {{ mp4; }}
        location /files/ {{ alias {dir}/files/; dav_methods PUT DELETE MKCOL COPY MOVE; }}
        location /escaped/ {{
            rewrite ^/escaped/(.*) /other?c=1;
            set $tail $1;
            return 200 $tail;
        }}
        location /overlapping/ {{ rewrite ^/overlapping/((.*))$ http://localhost/$1$2 redirect; }}
        location /upstream {{ proxy_pass http://127.0.0.1:{plain}; }}
        location /scgi {{ scgi_pass 127.0.0.1:{scgi}; scgi_param REQUEST_URI $request_uri; }}
        location /uwsgi {{ uwsgi_pass 127.0.0.1:{uwsgi}; uwsgi_param REQUEST_URI $request_uri; }}
        location /tls {{ proxy_pass https://127.0.0.1:{tls}/page; }}
        location /before-tls {{ proxy_pass https://127.0.0.1:{before_tls}; }}
        location /busy {{
            if ($arg_x ~ "^(a+)+$") {{ return 204; }}
            return 204;
        }}
        location /recode {{
            proxy_pass http://127.0.0.1:{plain};
            proxy_http_version 1.1;
            proxy_buffering off;
            source_charset utf-8;
            charset windows-1251;
        }}
    }}

    server {{
        listen 127.0.0.1:{tls} ssl;
        ssl_certificate {dir}/cert.pem;
        ssl_certificate_key {dir}/key.pem;
        root {dir}/www;
    }}
}}

mail {{
    server_name localhost;
    auth_http 127.0.0.1:{auth}/auth;
    proxy_pass_error_message on;
    xclient off;
    smtp_auth plain login cram-md5 none;
    server {{
        listen 127.0.0.1:{mail};
        protocol smtp;
        resolver 127.0.0.1:{names} ipv6=off;
    }}
    server {{
        listen 127.0.0.1:{mail_two_lines};
        protocol smtp;
        resolver 127.0.0.1:{two_lines} ipv6=off;
    }}
}}
"#
    )
}
