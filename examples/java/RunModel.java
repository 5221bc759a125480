// SPDX-License-Identifier: Apache-2.0
//
// Runs a model that holds LayerNormBackprop nodes from Java, with the kernel library:
//
//     java -cp onnxruntime.jar RunModel.java LIBRARY MODEL
//
// Inputs may be of float or int64. One of float gets 0.01, 0.02, ..., one of int64 0, 1, 0, 1, ...; a length that the
// model leaves open is 2. The first elements of each output, which must be of float, are printed.

import ai.onnxruntime.NodeInfo;
import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.TensorInfo;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;

public final class RunModel {
  private static final int MOST_PRINTED = 8;

  public static void main(String[] arguments) {
    if (arguments.length != 2) {
      System.err.println("usage: RunModel LIBRARY MODEL");
      System.exit(2);
    }
    try {
      run(arguments[0], arguments[1]);
    } catch (OrtException | IllegalArgumentException error) {
      System.err.println(error.getMessage());
      System.exit(1);
    }
  }

  private static void run(String library, String model) throws OrtException {
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
      options.registerCustomOpLibrary(library);
      try (OrtSession session = environment.createSession(model, options)) {
        Map<String, OnnxTensor> inputs = new HashMap<>();
        for (NodeInfo input : session.getInputInfo().values()) {
          inputs.put(input.getName(), makeInput(environment, input));
        }
        try (OrtSession.Result outputs = session.run(inputs)) {
          for (Map.Entry<String, OnnxValue> output : outputs) {
            print(output.getKey(), ((OnnxTensor) output.getValue()).getFloatBuffer());
          }
        } finally {
          inputs.values().forEach(OnnxTensor::close);
        }
      }
    }
  }

  private static OnnxTensor makeInput(OrtEnvironment environment, NodeInfo input) throws OrtException {
    TensorInfo info = (TensorInfo) input.getInfo();
    long[] shape = Arrays.stream(info.getShape()).map(length -> length < 0 ? 2 : length).toArray();
    int count = Math.toIntExact(Arrays.stream(shape).reduce(1, (product, length) -> product * length));
    if (info.type == OnnxJavaType.FLOAT) {
      FloatBuffer values = FloatBuffer.allocate(count);
      for (int i = 0; i < count; ++i) {
        values.put(i, 0.01f * (i + 1));
      }
      return OnnxTensor.createTensor(environment, values, shape);
    }
    if (info.type == OnnxJavaType.INT64) {
      LongBuffer values = LongBuffer.allocate(count);
      for (int i = 0; i < count; ++i) {
        values.put(i, i % 2);
      }
      return OnnxTensor.createTensor(environment, values, shape);
    }
    throw new IllegalArgumentException(
        "Input " + input.getName() + " is of " + info.type + "; it must be of float or int64.");
  }

  private static void print(String name, FloatBuffer output) {
    StringBuilder line = new StringBuilder(name).append(':');
    for (int i = 0; i < Math.min(output.capacity(), MOST_PRINTED); ++i) {
      line.append(' ').append(output.get(i));
    }
    System.out.println(line.append(output.capacity() > MOST_PRINTED ? " ..." : ""));
  }
}
