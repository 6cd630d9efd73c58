/*
 * A server of HTTP/2 without TLS on libnghttp2: a thread per connection, whose session lives as long as it does.
 * It answers each request with its method, its path and the number of bytes that came with it. The argument is the
 * port on the loopback.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct request {
    char method[16], path[64];
    size_t bytes;
    char answer[128];
    size_t sent;
};

static void *request_of(nghttp2_session *session, int32_t id)
{
    return nghttp2_session_get_stream_user_data(session, id);
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    (void)user;
    if (frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
        struct request *request = calloc(1, sizeof(*request));

        if (request == NULL)
            return NGHTTP2_ERR_CALLBACK_FAILURE;
        nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, request);
    }
    return 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_length,
                     const uint8_t *value, size_t length, uint8_t flags, void *user)
{
    struct request *request = request_of(session, frame->hd.stream_id);

    (void)flags;
    (void)user;
    if (request == NULL)
        return 0;
    if (name_length == 7 && memcmp(name, ":method", 7) == 0)
        snprintf(request->method, sizeof(request->method), "%.*s", (int)length, (const char *)value);
    if (name_length == 5 && memcmp(name, ":path", 5) == 0)
        snprintf(request->path, sizeof(request->path), "%.*s", (int)length, (const char *)value);
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data, size_t length, void *user)
{
    struct request *request = request_of(session, id);

    (void)flags;
    (void)data;
    (void)user;
    if (request != NULL)
        request->bytes += length;
    return 0;
}

static ssize_t read_answer(nghttp2_session *session, int32_t id, uint8_t *buffer, size_t length, uint32_t *flags,
                           nghttp2_data_source *source, void *user)
{
    struct request *request = source->ptr;
    size_t left = strlen(request->answer) - request->sent;

    (void)session;
    (void)id;
    (void)user;
    if (length > left)
        length = left;
    memcpy(buffer, request->answer + request->sent, length);
    request->sent += length;
    if (length == left)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)length;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    static uint8_t status[] = ":status", ok[] = "200";
    nghttp2_nv head = { status, ok, sizeof(status) - 1, sizeof(ok) - 1, NGHTTP2_NV_FLAG_NONE };
    struct request *request;

    (void)user;
    if ((frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA)
        || (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) == 0)
        return 0;
    request = request_of(session, frame->hd.stream_id);
    if (request == NULL)
        return 0;
    snprintf(request->answer, sizeof(request->answer), "%s %s %zu", request->method, request->path, request->bytes);
    return nghttp2_submit_response(session, frame->hd.stream_id, &head, 1,
                                   &(nghttp2_data_provider){ { .ptr = request }, read_answer });
}

static int on_close(nghttp2_session *session, int32_t id, uint32_t error, void *user)
{
    (void)error;
    (void)user;
    free(request_of(session, id));
    return 0;
}

static int flush(nghttp2_session *session, int connection)
{
    const uint8_t *bytes;
    ssize_t length, sent;

    while ((length = nghttp2_session_mem_send(session, &bytes)) > 0)
        for (; length > 0; bytes += sent, length -= sent)
            if ((sent = send(connection, bytes, (size_t)length, 0)) <= 0)
                return -1;
    return (int)length;
}

static void *serve(void *argument)
{
    int connection = (int)(intptr_t)argument;
    nghttp2_settings_entry settings[] = { { NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1 } };
    nghttp2_session_callbacks *callbacks;
    nghttp2_session *session;
    nghttp2_option *option;
    uint8_t buffer[16384];
    ssize_t length;

    if (nghttp2_session_callbacks_new(&callbacks) != 0 || nghttp2_option_new(&option) != 0)
        abort();
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    nghttp2_option_set_builtin_recv_extension_type(option, NGHTTP2_PRIORITY_UPDATE);
    if (nghttp2_session_server_new2(&session, callbacks, NULL, option) != 0)
        abort();
    nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, settings, 1);
    while (flush(session, connection) == 0
           && (nghttp2_session_want_read(session) || nghttp2_session_want_write(session))
           && (length = recv(connection, buffer, sizeof(buffer), 0)) > 0)
        if (nghttp2_session_mem_recv(session, buffer, (size_t)length) < 0)
            break;
    nghttp2_session_del(session);
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    close(connection);
    return NULL;
}

int main(int count, char **arguments)
{
    struct sockaddr_in address = { .sin_family = AF_INET };
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1, connection;
    pthread_t thread;

    if (count != 2 || listener < 0)
        return 2;
    signal(SIGPIPE, SIG_IGN);
    address.sin_port = htons((uint16_t)atoi(arguments[1]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) != 0 || listen(listener, 64) != 0)
        return 1;
    while ((connection = accept(listener, NULL, NULL)) >= 0) {
        setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)connection) != 0)
            return 1;
        pthread_detach(thread);
    }
    return 1;
}
