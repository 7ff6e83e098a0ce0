/* What tsm/Tsm.java calls, over tsm.h. `make -C apps/jvm` builds it into libtsm.so, with the engine.
 *
 * Handles are pointers, which Tsm.java checks before it passes them on. A call that fails has an exception
 * pending, and what it returns is not looked at.
 */
#include "tsm.h"

#include <jni.h>
#include <stdlib.h>
#include <string.h>

#define CALL(result, name) JNIEXPORT result JNICALL Java_tsm_Tsm_##name
#define MODEL(handle) ((tsm_model *)(intptr_t)(handle))
#define STREAM(handle) ((tsm_stream *)(intptr_t)(handle))
#define HANDLE(pointer) ((jlong)(intptr_t)(pointer))

enum { PIECE = 4096 };
typedef char sampling_is_what_java_writes[sizeof(tsm_sampling) == 263 * 8 + 16 ? 1 : -1];

/* 1, and Tsm.Failure pending, where a call has failed. */
static int raised(JNIEnv *env, int status, const char *message) {
    if (!status) return 0;
    jclass type = (*env)->FindClass(env, "tsm/Tsm$Failure");
    jmethodID make = type ? (*env)->GetMethodID(env, type, "<init>", "(ILjava/lang/String;)V") : NULL;
    jstring text = make ? (*env)->NewStringUTF(env, message) : NULL;
    jthrowable failure = text ? (*env)->NewObject(env, type, make, (jint)status, text) : NULL;
    if (failure) (*env)->Throw(env, failure);
    return 1;
}

static jbyteArray to_java(JNIEnv *env, const void *bytes, size_t count) {
    jbyteArray made = (*env)->NewByteArray(env, (jsize)count);
    if (made) (*env)->SetByteArrayRegion(env, made, 0, (jsize)count, bytes);
    return made;
}

static tsm_sampling sampling_of(JNIEnv *env, jbyteArray settings) {
    tsm_sampling sampling;
    (*env)->GetByteArrayRegion(env, settings, 0, sizeof sampling, (jbyte *)&sampling);
    return sampling;
}

CALL(jlong, open)(JNIEnv *env, jclass type, jobject file, jint threads) {
    char message[TSM_MESSAGE_BYTES];
    tsm_model *model = NULL;
    void *bytes = (*env)->GetDirectBufferAddress(env, file);
    (void)type;
    if (!bytes) raised(env, TSM_ARGUMENT, "file: no direct buffer, wanted one");
    else raised(env, tsm_open(bytes, (size_t)(*env)->GetDirectBufferCapacity(env, file), 0, TSM_SIMD,
                              (uint32_t)threads, &model, message), message);
    return HANDLE(model);
}

CALL(void, free)(JNIEnv *env, jclass type, jlong model) {
    (void)env, (void)type;
    tsm_free(MODEL(model));
}

CALL(jbyteArray, metadata)(JNIEnv *env, jclass type, jlong model) {
    size_t bytes;
    const char *text = tsm_metadata(MODEL(model), &bytes);
    (void)type;
    return to_java(env, text, bytes);
}

CALL(jlong, newStream)(JNIEnv *env, jclass type, jlong model, jbyteArray settings, jint rewind_bytes) {
    char message[TSM_MESSAGE_BYTES];
    tsm_stream *stream;
    tsm_sampling sampling = sampling_of(env, settings);
    (void)type;
    raised(env, tsm_stream_new(MODEL(model), &sampling, (uint32_t)rewind_bytes, &stream, message), message);
    return HANDLE(stream);
}

CALL(jlong, restore)(JNIEnv *env, jclass type, jlong model, jbyteArray state, jint rewind_bytes) {
    char message[TSM_MESSAGE_BYTES];
    tsm_stream *stream = NULL;
    jbyte *bytes = (*env)->GetByteArrayElements(env, state, NULL);
    (void)type;
    if (!bytes) return 0;
    int status = tsm_restore(MODEL(model), bytes, (size_t)(*env)->GetArrayLength(env, state),
                             (uint32_t)rewind_bytes, &stream, message);
    (*env)->ReleaseByteArrayElements(env, state, bytes, JNI_ABORT);
    raised(env, status, message);
    return HANDLE(stream);
}

CALL(jlong, fork)(JNIEnv *env, jclass type, jlong stream) {
    char message[TSM_MESSAGE_BYTES];
    tsm_stream *other;
    (void)type;
    raised(env, tsm_fork(STREAM(stream), &other, message), message);
    return HANDLE(other);
}

CALL(void, freeStream)(JNIEnv *env, jclass type, jlong stream) {
    (void)env, (void)type;
    tsm_stream_free(STREAM(stream));
}

/* Of no stream: the defaults. */
CALL(jbyteArray, getSettings)(JNIEnv *env, jclass type, jlong stream) {
    tsm_sampling sampling;
    (void)type;
    if (stream) tsm_get_sampling(STREAM(stream), &sampling);
    else tsm_sampling_defaults(&sampling);
    return to_java(env, &sampling, sizeof sampling);
}

CALL(void, setSettings)(JNIEnv *env, jclass type, jlong stream, jbyteArray settings) {
    char message[TSM_MESSAGE_BYTES];
    tsm_sampling sampling = sampling_of(env, settings);
    (void)type;
    raised(env, tsm_set_sampling(STREAM(stream), &sampling, message), message);
}

CALL(jlong, position)(JNIEnv *env, jclass type, jlong stream) {
    (void)env, (void)type;
    return (jlong)tsm_position(STREAM(stream));
}

CALL(void, feed)(JNIEnv *env, jclass type, jlong stream, jbyteArray bytes) {
    char message[TSM_MESSAGE_BYTES];
    jsize count = (*env)->GetArrayLength(env, bytes);
    jbyte piece[PIECE];
    (void)type;
    for (jsize at = 0; at < count; at += PIECE) {
        jsize length = count - at < PIECE ? count - at : PIECE;
        (*env)->GetByteArrayRegion(env, bytes, at, length, piece);
        if (raised(env, tsm_feed(STREAM(stream), piece, (size_t)length, message), message)) return;
    }
}

CALL(jfloatArray, logits)(JNIEnv *env, jclass type, jlong stream) {
    char message[TSM_MESSAGE_BYTES];
    const float *logits;
    (void)type;
    if (raised(env, tsm_logits(STREAM(stream), &logits, message), message)) return NULL;
    jfloatArray made = (*env)->NewFloatArray(env, 256);
    if (made) (*env)->SetFloatArrayRegion(env, made, 0, 256, logits);
    return made;
}

CALL(jfloatArray, score)(JNIEnv *env, jclass type, jlong stream, jbyteArray bytes) {
    char message[TSM_MESSAGE_BYTES];
    jsize count = (*env)->GetArrayLength(env, bytes);
    jfloatArray made = (*env)->NewFloatArray(env, count);
    jbyte piece[PIECE];
    float nats[PIECE];
    (void)type;
    for (jsize at = 0; made && at < count; at += PIECE) {
        jsize length = count - at < PIECE ? count - at : PIECE;
        (*env)->GetByteArrayRegion(env, bytes, at, length, piece);
        if (raised(env, tsm_score(STREAM(stream), piece, (size_t)length, nats, message), message)) break;
        (*env)->SetFloatArrayRegion(env, made, at, length, nats);
    }
    return made;
}

CALL(void, generate)(JNIEnv *env, jclass type, jlong stream, jlong bytes, jobjectArray stops) {
    char message[TSM_MESSAGE_BYTES];
    jsize count = (*env)->GetArrayLength(env, stops), taken = 0;
    char **texts = calloc((size_t)count + 1, sizeof *texts);
    (void)type;
    for (; texts && taken < count; taken++) {
        jbyteArray stop = (*env)->GetObjectArrayElement(env, stops, taken);
        jsize length = (*env)->GetArrayLength(env, stop);
        if (!(texts[taken] = calloc((size_t)length + 1, 1))) break;
        (*env)->GetByteArrayRegion(env, stop, 0, length, (jbyte *)texts[taken]);
        (*env)->DeleteLocalRef(env, stop);
    }
    if (!texts || taken < count) raised(env, TSM_MEMORY, "no memory for stop strings");
    else raised(env, tsm_generate(STREAM(stream), (uint64_t)bytes, (const char *const *)texts, (size_t)count,
                                  message), message);
    while (taken) free(texts[--taken]);
    free(texts);
}

/* UTF-8, none at the end; not a jstring, whose UTF-8 is another one. */
CALL(jbyteArray, next)(JNIEnv *env, jclass type, jlong stream) {
    char message[TSM_MESSAGE_BYTES];
    const char *text;
    size_t bytes;
    (void)type;
    if (raised(env, tsm_next(STREAM(stream), &text, &bytes, message), message)) return NULL;
    return to_java(env, text, bytes);
}

CALL(jint, finish)(JNIEnv *env, jclass type, jlong stream) {
    (void)env, (void)type;
    return tsm_finish_reason(STREAM(stream));
}

CALL(void, rewind)(JNIEnv *env, jclass type, jlong stream, jlong bytes) {
    char message[TSM_MESSAGE_BYTES];
    (void)type;
    raised(env, tsm_rewind(STREAM(stream), (uint64_t)bytes, message), message);
}

CALL(jbyteArray, save)(JNIEnv *env, jclass type, jlong stream) {
    size_t bytes = tsm_save(STREAM(stream), NULL, 0);
    uint8_t *state = malloc(bytes);
    (void)type;
    if (!state) {
        raised(env, TSM_MEMORY, "no memory for the state");
        return NULL;
    }
    tsm_save(STREAM(stream), state, bytes);
    jbyteArray made = to_java(env, state, bytes);
    free(state);
    return made;
}
